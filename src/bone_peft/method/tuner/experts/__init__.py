"""Mixtures of experts, whose weights are 3-D parameters of one module, and no layers.

``fused`` makes such a parameter a layer, and ``experts_layer`` puts adapters on it. ``kinds/`` knows the modules, and
``unfolding`` changes them. ``named`` says by which names of ``target_modules`` a projection is meant, ``separate``
joins adapters of older models, ``left_out`` finds what stays as it is.
"""
