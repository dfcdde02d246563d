"""Fast paths of the variants: the same results within rounding, in less time and memory.

``bone_peft.variants`` defines what is computed; nothing here is needed to understand it. ``dispatch`` picks the path,
the other files hold one operation each: a Triton kernel, its plain torch form, and the autograd function around them.
"""
