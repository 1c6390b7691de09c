"""Transformers from their configs: operators, parameters, FLOPs, bytes, and the steps that train and serve them."""

from trnsim.workloads.catalogue import Entry, build, entry, load_model, model_names, weight_formats
from trnsim.workloads.layout import Layout
from trnsim.workloads.memory import Memory, serving_memory, training_memory
from trnsim.workloads.model import Layer, Model
from trnsim.workloads.operators import Exchange, Use
from trnsim.workloads.serving import decode, prefill
from trnsim.workloads.training import Stage, hardware_flops, training

__all__ = [
    "Entry",
    "Exchange",
    "Layer",
    "Layout",
    "Memory",
    "Model",
    "Stage",
    "Use",
    "build",
    "decode",
    "entry",
    "hardware_flops",
    "load_model",
    "model_names",
    "prefill",
    "serving_memory",
    "training",
    "training_memory",
    "weight_formats",
]
