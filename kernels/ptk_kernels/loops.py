"""The loops over bytes and hashes, compiled by Numba.

They stand in one file because the code that Numba keeps on disk is made anew when the file of a function changes, but not
when that of a function which it calls does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from ptk_kernels.compiled import compiled

__all__ = [
    "BASE",
    "COUNT",
    "OFFSET",
    "PRIME",
    "SINGLE",
    "band_rows",
    "fill_table",
    "flatten",
    "link",
    "look_again",
    "mark_again",
    "mix",
    "overlap_rows",
    "pair_rows",
    "shingle_rows",
    "sign_rows",
    "unique_rows",
]

BASE = 0x9E3779B97F4A7C15
COUNT = 0xD6E8FEB86659FD93
OFFSET = 0xCBF29CE484222325
PRIME = 0x100000001B3
SINGLE = 1 << 31
"""Marks a code point that is a word by itself."""

_U = np.uint64
_U32 = np.uint32
_OFFSET, _PRIME, _BASE, _COUNT, _SINGLE = _U(OFFSET), _U(PRIME), _U(BASE), _U(COUNT), _U(SINGLE)
_M1, _M2 = _U(0xFF51AFD7ED558CCD), _U(0xC4CEB9FE1A85EC53)
_S33, _ONE = _U(33), _U(1)
_MOST = _U32(0xFFFFFFFF)
_GOLDEN = _U(0x9E3779B97F4A7C15)


@intrinsic  # type: ignore[untyped-decorator]
def byte_at(typing_context: Any, address: Any) -> Any:
    """Return the byte at a memory address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        from llvmlite import ir

        pointer = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        return builder.load(pointer)

    return types.uint8(types.uint64), generate


@compiled
def mix(value):  # type: ignore[no-untyped-def]
    """Return the finaliser of MurmurHash3 over 64 bits."""
    value = (value ^ (value >> _S33)) * _M1
    value = (value ^ (value >> _S33)) * _M2
    return value ^ (value >> _S33)


@compiled
def words_of(start, length, table, points, out, at):  # type: ignore[no-untyped-def]
    """Write the hashes of the words of the text at an address to `out` from `at` and return how many there are."""
    first = at
    position = start
    end = start + length
    state = _OFFSET
    inside = False
    while position < end:
        byte = byte_at(position)
        position += _ONE
        if byte < 0x80:
            letter = table[byte]
            if letter:
                state = (state ^ _U(letter)) * _PRIME
                inside = True
            elif inside:
                out[at] = mix(state)
                at += 1
                state = _OFFSET
                inside = False
            continue
        follow = _U(1) if byte < 0xE0 else (_U(2) if byte < 0xF0 else _U(3))
        if position + follow > end:
            break  # never in valid UTF-8
        point = _U(byte) & (_U(0x3F) >> follow)
        for _ in range(follow):
            point = (point << _U(6)) | (_U(byte_at(position)) & _U(0x3F))
            position += _ONE
        folded = _U(points[point]) if point < _U(len(points)) else point
        if folded and not folded & _SINGLE:
            state = (state ^ folded) * _PRIME
            inside = True
            continue
        if inside:
            out[at] = mix(state)
            at += 1
            state = _OFFSET
            inside = False
        if folded:
            out[at] = mix((_OFFSET ^ (folded & (_SINGLE - _ONE))) * _PRIME)
            at += 1
    if inside:
        out[at] = mix(state)
        at += 1
    return at - first


@compiled
def grams_of(out, at, words, ngram, power):  # type: ignore[no-untyped-def]
    """Replace the `words` hashes at `at` by those of their n-grams and return how many there are; `power` is BASE ** (ngram - 1)."""
    if words == 0:
        return 0
    size = min(words, ngram)
    total = _U(0)
    for index in range(size):
        total = total * _BASE + out[at + index]
    salt = _U(size) * _COUNT
    leaving = out[at]
    out[at] = mix(total + salt)
    for index in range(1, words - size + 1):
        total = (total - leaving * power) * _BASE + out[at + index + size - 1]
        leaving = out[at + index]
        out[at + index] = mix(total + salt)
    return words - size + 1


@compiled
def shingle_rows(views, base, buffers, valid, start, stop, ngram, power, table, points, out, offsets):  # type: ignore[no-untyped-def]
    """Write the n-grams of rows `start` to `stop` to `out`, and where each row's end to `offsets[1:]`."""
    at = 0
    offsets[0] = 0
    for row in range(start, stop):
        if valid[row]:
            length = views[row, 0] & _U(0xFFFFFFFF)
            address = base + _U(16) * _U(row) + _U(4)  # up to 12 bytes stand in the view itself
            if length > _U(12):
                address = buffers[views[row, 1] & _U(0xFFFFFFFF)] + (views[row, 1] >> _U(32))
            words = words_of(address, length, table, points, out, at)
            at += grams_of(out, at, words, ngram, power)
        offsets[row - start + 1] = at
    return at


@compiled
def sign(hashes, start, stop, a, b, signature):  # type: ignore[no-untyped-def]
    """Write the signature of `hashes[start:stop]` to `signature`."""
    count = len(signature)
    for k in range(count):
        signature[k] = _MOST
    at = start
    while at + 4 <= stop:  # four at a time, so that a, b and the signature are loaded a quarter as often
        x0 = _U32(hashes[at] >> _U(32))
        x1 = _U32(hashes[at + 1] >> _U(32))
        x2 = _U32(hashes[at + 2] >> _U(32))
        x3 = _U32(hashes[at + 3] >> _U(32))
        for k in range(count):
            v0 = _U32(x0 * a[k] + b[k])
            v1 = _U32(x1 * a[k] + b[k])
            v2 = _U32(x2 * a[k] + b[k])
            v3 = _U32(x3 * a[k] + b[k])
            signature[k] = min(signature[k], v0, v1, v2, v3)
        at += 4
    while at < stop:
        x0 = _U32(hashes[at] >> _U(32))
        for k in range(count):
            signature[k] = min(signature[k], _U32(x0 * a[k] + b[k]))
        at += 1


@compiled
def sign_rows(hashes, offsets, start, stop, a, b, out):  # type: ignore[no-untyped-def]
    """Write the signatures of rows `start` to `stop`."""
    for row in range(start, stop):
        sign(hashes, offsets[row], offsets[row + 1], a, b, out[row])


@compiled
def band_rows(hashes, offsets, a, b, bands, rows, buckets, ties, present):  # type: ignore[no-untyped-def]
    """Write each text's buckets and ties, and whether it has any."""
    signature = np.empty(bands * rows, np.uint32)
    low = _U(0xFFFFFFFF)
    for row in range(len(offsets) - 1):
        first, last = offsets[row], offsets[row + 1]
        present[row] = last > first
        if not present[row]:
            continue
        digest = _OFFSET
        for at in range(first, last):
            digest = (digest ^ hashes[at]) * _PRIME
        digest = mix(digest)
        sign(hashes, first, last, a, b, signature)
        for band in range(bands):
            value = _U(band + 1) * _GOLDEN
            for k in range(band * rows, (band + 1) * rows):
                value = (value ^ _U(signature[k])) * _BASE
            buckets[row, band] = mix(value)
        for band in range(bands):
            ties[row, band] = (buckets[row, (band + 1) % bands] & ~low) | (digest & low)
        buckets[row, bands] = digest
        ties[row, bands] = digest


@compiled
def unique_rows(hashes, offsets, kept):  # type: ignore[no-untyped-def]
    """Sort each row of `hashes`, drop what repeats, close the gaps, and write the new offsets."""
    at = 0
    kept[0] = 0
    for row in range(len(offsets) - 1):
        first, last = offsets[row], offsets[row + 1]
        if last - first > 1:
            hashes[first:last].sort()
        begin = at
        for index in range(first, last):
            if at == begin or hashes[at - 1] != hashes[index]:
                hashes[at] = hashes[index]
                at += 1
        kept[row + 1] = at
    return at


@compiled
def similarity(values, i, i_end, j, j_end):  # type: ignore[no-untyped-def]
    """Return the Jaccard similarity of two sorted sets, 0.0 for two empty ones."""
    either = (i_end - i) + (j_end - j)
    both = 0
    while i < i_end and j < j_end:
        x, y = values[i], values[j]
        both += x == y
        i += x <= y
        j += y <= x
    return both / (either - both) if either else 0.0


@compiled
def root_of(parents, node):  # type: ignore[no-untyped-def]
    """Return the root of a node's tree, and shorten the way there."""
    while parents[node] != node:
        parents[node] = parents[parents[node]]
        node = parents[node]
    return node


@compiled
def link(left, right, values, offsets, threshold, parents):  # type: ignore[no-untyped-def]
    """Join the trees of all pairs that are similar enough, or of all where the threshold is 0; a root is the smallest of its tree."""
    for pair in range(len(left)):
        i, j = root_of(parents, left[pair]), root_of(parents, right[pair])
        if i == j:
            continue
        if threshold > 0.0:
            a, b = left[pair], right[pair]
            if similarity(values, offsets[a], offsets[a + 1], offsets[b], offsets[b + 1]) < threshold:
                continue
        parents[max(i, j)] = min(i, j)


@compiled
def flatten(parents):  # type: ignore[no-untyped-def]
    """Hang every node on its root; a parent is never larger than its child."""
    for node in range(len(parents)):
        parents[node] = parents[parents[node]]


@compiled
def pair_rows(buckets, ties, rows, most, window, left, right, same):  # type: ignore[no-untyped-def]
    """Write the pairs of `bucket_pairs` where `left` has room for them, and return how many there are."""
    at = 0
    room = len(left)
    members = np.empty(len(buckets), np.int64)
    first = 0
    while first < len(buckets):
        last = first
        count = 0
        while last < len(buckets) and buckets[last] == buckets[first]:
            if count and ties[last] == ties[members[count - 1]]:
                if ties[last] == buckets[last]:
                    if at < room:
                        left[at], right[at], same[at] = rows[members[count - 1]], rows[last], True
                    at += 1
            else:
                members[count] = last
                count += 1
            last += 1
        for i in range(count):
            reach = count if count <= most or i == 0 else min(count, i + 1 + window)
            for j in range(i + 1, reach):
                if at < room:
                    left[at], right[at], same[at] = rows[members[i]], rows[members[j]], False
                at += 1
        first = last
    return at


@compiled
def mark_again(values, seen, again, shift):  # type: ignore[no-untyped-def]
    """Set the bit of every value in `seen`, and of those whose bit was set already in `again`."""
    for value in values:
        slot = (value * _GOLDEN) >> shift
        word = slot >> _U(6)
        bit = _U(1) << (slot & _U(63))
        if seen[word] & bit:
            again[word] |= bit
        else:
            seen[word] |= bit


@compiled
def look_again(values, again, shift, out):  # type: ignore[no-untyped-def]
    """Write for each value whether its bit is set in `again`."""
    for index in range(len(values)):
        slot = (values[index] * _GOLDEN) >> shift
        out[index] = (again[slot >> _U(6)] >> (slot & _U(63))) & _U(1)


@compiled
def fill_table(values, table, mask):  # type: ignore[no-untyped-def]
    """Put values into an open table; 0 is an empty slot, so it is none of the values."""
    for value in values:
        slot = value & mask
        while table[slot] != 0 and table[slot] != value:
            slot = (slot + _U(1)) & mask
        table[slot] = value


@compiled
def overlap_rows(hashes, offsets, table, mask, zero, shared, size):  # type: ignore[no-untyped-def]
    """Write for each row how many of its hashes are in the table, and how many it has; `zero` says whether 0 counts as in it."""
    for row in range(len(offsets) - 1):
        found = 0
        for index in range(offsets[row], offsets[row + 1]):
            value = hashes[index]
            if value == 0:
                found += zero
                continue
            slot = value & mask
            while table[slot] != 0 and table[slot] != value:
                slot = (slot + _U(1)) & mask
            found += table[slot] == value
        shared[row] = found
        size[row] = offsets[row + 1] - offsets[row]
