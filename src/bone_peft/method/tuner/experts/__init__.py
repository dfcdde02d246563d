"""Mixtures of experts, whose weights are 3-D parameters of one module, and no layers.

``fused`` makes such a parameter a layer, ``experts_layer`` puts adapters on it, ``interface`` runs the module as
Transformers' experts interface does, ``named`` says by which names of ``target_modules`` it is meant.
"""
