"""The formulas of the variants, block by block in float64 loops. Independent of the package on purpose."""

import math

import numpy as np


def bone_delta(block, weight):
    """dW[:, i*r + k] = D[k, :], the last block cut off."""
    out, features = weight.shape
    r = block.shape[0]
    delta = np.zeros((out, features))
    for i in range(math.ceil(features / r)):
        for k in range(min(r, features - i * r)):
            delta[:, i * r + k] = block[k]
    return delta


def bat_delta(block, weight):
    """dW_oi = W_oi B_o + B_o."""
    out, features = weight.shape
    r = block.shape[-1]
    delta = np.zeros((out, features))
    for o in range(out // r):
        for i in range(features // r):
            rows, columns = slice(o * r, o * r + r), slice(i * r, i * r + r)
            delta[rows, columns] = weight[rows, columns] @ block[o] + block[o]
    return delta


def bat_input_delta(block, weight):
    """dW_oi = W_oi D_i + D_i."""
    out, features = weight.shape
    r = block.shape[-1]
    delta = np.zeros((out, features))
    for o in range(out // r):
        for i in range(features // r):
            rows, columns = slice(o * r, o * r + r), slice(i * r, i * r + r)
            delta[rows, columns] = weight[rows, columns] @ block[i] + block[i]
    return delta


def bottleneck_delta(down, up, weight):
    """dW[o, i] = sum_k up[o, k] down[k, i]."""
    delta = np.zeros(weight.shape)
    for k in range(down.shape[0]):
        delta += np.outer(up[:, k], down[k])
    return delta


DELTA = {
    "bone": lambda p, w: bone_delta(p["bone_block"], w),
    "bat": lambda p, w: bat_delta(p["bone_block"], w),
    "bat-input": lambda p, w: bat_input_delta(p["bone_block"], w),
    "bottleneck": lambda p, w: bottleneck_delta(p["bone_down"], p["bone_up"], w),
}


def delta_gradient(name, params, weight, grad_delta):
    """Gradient of sum(grad_delta * dW) with respect to each parameter, from the linearity of dW in each.

    ``dW`` is linear in every single tensor (for the bottleneck with the other one held), so the derivative along a unit
    vector is the value of ``dW`` there less its value at zero.
    """
    gradients = {}
    for key, value in params.items():
        gradient = np.zeros(value.shape)
        for index in np.ndindex(value.shape):
            unit = np.zeros(value.shape)
            unit[index] = 1.0
            gradient[index] = (grad_delta * DELTA[name]({**params, key: unit}, weight)).sum()
        gradients[key] = gradient
    return gradients
