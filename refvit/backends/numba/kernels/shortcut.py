"""HRViT's diversity-enhanced shortcut: a token is a k x p matrix X, and L gelu(X R^T + r) + l is added to what else there is.

Memory keeps a token as it is, row after row, so that a vector is LANES / p rows, one row or a part of one. Eight tokens go
through both products together and share what they read of the weights:

    right: Z[v] = sum over j of X[.., j] R[j]   a value of X broadcast; R holds a copy of R^T for each of the rows in a vector
    left:  Y[v] = sum over i of L[v, i] G[i]    where a vector has several rows, G is also kept rotated by one row, by two, ...
"""

from numba import njit

from refvit.backends.numba.kernels.depthwise import add_rows
from refvit.backends.numba.kernels.elementary import activate_block
from refvit.backends.numba.simd import LANES, arg, fma, get, keep, load, splat, store, store_part

# the arguments, in order: addresses; _IMAGE and _TOKEN are bytes from one to the next
X, X_IMAGE, X_TOKEN, OUT, OUT_IMAGE, OUT_TOKEN = 0, 1, 2, 3, 4, 5
TOKENS, C = 6, 7  # of an image; values of a token
RUNS, RUN = 8, 9  # runs of tokens in an image, tokens in each
RIGHT, RIGHT_BIAS = 10, 11  # (pieces, depth, LANES): what the inputs of a vector add to it; (pieces, LANES)
DEPTH, PIECES = 12, 13  # inputs of a vector: p, or LANES where that is more; vectors in a row: p / LANES, at least 1
LEFT, LEFT_BIAS = 14, 15  # (vectors / pieces, sources, 1 or LANES) and (vectors / pieces, 1 or LANES)
TURNS = 16  # rows in a vector: LANES / p, at least 1; where it is 1, the left weights are broadcast
ROW = 17  # p
ACT = 18
TERMS = 19  # number of residuals; then address, bytes from image to image, from token to token of each

TOGETHER = 8


@njit
def lanes_or_one(address, single):
    if single:
        return splat(get(address))
    return load(address)


@njit
def right_eight(x, x_token, weight, bias, depth, z):
    """One vector of eight tokens: z = bias + sum over j < depth of x[j] weight[j]."""
    start = load(bias)
    s0, s1, s2, s3, s4, s5, s6, s7 = start, start, start, start, start, start, start, start
    x4 = x + 4 * x_token
    for _ in range(depth):
        w = load(weight)
        s0 = fma(splat(get(x)), w, s0)
        s1 = fma(splat(get(x + x_token)), w, s1)
        s2 = fma(splat(get(x + 2 * x_token)), w, s2)
        s3 = fma(splat(get(x + 3 * x_token)), w, s3)
        s4 = fma(splat(get(x4)), w, s4)
        s5 = fma(splat(get(x4 + x_token)), w, s5)
        s6 = fma(splat(get(x4 + 2 * x_token)), w, s6)
        s7 = fma(splat(get(x4 + 3 * x_token)), w, s7)
        x += 4
        x4 += 4
        weight += 4 * LANES
    store(z, s0)
    store(z + 4 * LANES, s1)
    store(z + 8 * LANES, s2)
    store(z + 12 * LANES, s3)
    store(z + 16 * LANES, s4)
    store(z + 20 * LANES, s5)
    store(z + 24 * LANES, s6)
    store(z + 28 * LANES, s7)


@njit
def right_one(x, weight, bias, depth, z):
    total = load(bias)
    for j in range(depth):
        total = fma(splat(get(x + 4 * j)), load(weight + 4 * LANES * j), total)
    store(z, total)


@njit
def left_eight(g, step, sources, weight, bias, single, out, out_token, n):
    """One vector of eight tokens: out = bias + sum over i < sources of weight[i] g[i]."""
    start = lanes_or_one(bias, single)
    s0, s1, s2, s3, s4, s5, s6, s7 = start, start, start, start, start, start, start, start
    for _ in range(sources):
        w = lanes_or_one(weight, single)
        s0 = fma(load(g), w, s0)
        s1 = fma(load(g + 4 * LANES), w, s1)
        s2 = fma(load(g + 8 * LANES), w, s2)
        s3 = fma(load(g + 12 * LANES), w, s3)
        s4 = fma(load(g + 16 * LANES), w, s4)
        s5 = fma(load(g + 20 * LANES), w, s5)
        s6 = fma(load(g + 24 * LANES), w, s6)
        s7 = fma(load(g + 28 * LANES), w, s7)
        g += step
        weight += 4 if single else 4 * LANES
    store_part(out, s0, n)
    store_part(out + out_token, s1, n)
    store_part(out + 2 * out_token, s2, n)
    store_part(out + 3 * out_token, s3, n)
    store_part(out + 4 * out_token, s4, n)
    store_part(out + 5 * out_token, s5, n)
    store_part(out + 6 * out_token, s6, n)
    store_part(out + 7 * out_token, s7, n)


@njit
def left_one(g, step, sources, weight, bias, single, out, n):
    total = lanes_or_one(bias, single)
    for _ in range(sources):
        total = fma(load(g), lanes_or_one(weight, single), total)
        g += step
        weight += 4 if single else 4 * LANES
    store_part(out, total, n)


@njit
def rotate(g, vectors, step, copy):
    """copy = the lanes of every vector `step` lanes further left; reads a vector before and one after g."""
    for _ in range(vectors):
        store(copy, keep(load(g + 4 * step), LANES - step, load(g + 4 * step - 4 * LANES)))
        g += 4 * LANES
        copy += 4 * LANES


def shortcut(a, unit, scratch):
    """A run of tokens of one image."""
    runs, run = arg(a, RUNS), arg(a, RUN)
    image = unit // runs
    token = unit % runs * run
    stop = min(arg(a, TOKENS), token + run)
    c, depth, pieces, turns, p = arg(a, C), arg(a, DEPTH), arg(a, PIECES), arg(a, TURNS), arg(a, ROW)
    vectors = (c + LANES - 1) // LANES
    single = turns == 1
    sources = turns * vectors if turns > 1 else c // p
    source, x_token = arg(a, X) + image * arg(a, X_IMAGE), arg(a, X_TOKEN)
    target, out_token = arg(a, OUT) + image * arg(a, OUT_IMAGE), arg(a, OUT_TOKEN)
    right, right_bias, left, left_bias = arg(a, RIGHT), arg(a, RIGHT_BIAS), arg(a, LEFT), arg(a, LEFT_BIAS)
    width = 4 if single else 4 * LANES
    g = scratch + 4 * LANES  # (turns, vectors, tokens, LANES), and a vector before and after for rotate
    while token < stop:
        count = TOGETHER if token + TOGETHER <= stop else 1
        x, out = source + token * x_token, target + token * out_token
        together = 4 * LANES * count
        for v in range(vectors):
            piece, first = v % pieces, v // pieces * depth
            taps = min(depth, c - first)
            w, b = right + 4 * LANES * depth * piece, right_bias + 4 * LANES * piece
            if count == 1:
                right_one(x + 4 * first, w, b, taps, g + together * v)
            else:
                right_eight(x + 4 * first, x_token, w, b, taps, g + together * v)
        activate_block(arg(a, ACT), g, 1, vectors * count * LANES, 0)
        for turn in range(1, turns):
            rotate(g, vectors * count, turn * p, g + turn * vectors * together)
        for v in range(vectors):
            n = min(LANES, c - LANES * v)
            w, b = left + width * sources * (v // pieces), left_bias + width * (v // pieces)
            begin, at = g + together * (v % pieces), out + 4 * LANES * v
            if count == 1:
                left_one(begin, together * pieces, sources, w, b, single, at, n)
            else:
                left_eight(begin, together * pieces, sources, w, b, single, at, out_token, n)
        for i in range(arg(a, TERMS)):
            term = a + 8 * (TERMS + 1 + 3 * i)
            add_rows(out, out_token, arg(term, 0) + image * arg(term, 1) + token * arg(term, 2), arg(term, 2), count, c)
        token += count
