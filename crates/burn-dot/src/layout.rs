//! The index space of a product: its axes, and how far a stride along each goes in every tensor that takes part.

use core::ops::Range;

use smallvec::SmallVec;

use crate::plan::{Input, Plan};

/// The tensors that take part. `X` and `Y` are the inputs, in whichever order suits a kernel.
pub(crate) const X: usize = 0;
pub(crate) const Y: usize = 1;
/// The output, or its gradient.
pub(crate) const OUT: usize = 2;
/// The gradients of the inputs.
pub(crate) const DX: usize = 3;
pub(crate) const DY: usize = 4;
/// One element for each vector of an input, such as its norm.
pub(crate) const X_INDEX: usize = 5;
pub(crate) const Y_INDEX: usize = 6;
/// One element for each of the output, wherever that is.
pub(crate) const OUT_INDEX: usize = 7;
pub(crate) const TENSORS: usize = 8;

/// How far, in each tensor.
pub(crate) type Offsets = [isize; TENSORS];

/// One axis: its size, and a stride along it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Axis {
    pub size: usize,
    pub stride: Offsets,
}

/// Axes that run together, the last one fastest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Axes(SmallVec<[Axis; 2]>);

/// `out[b, i, j] = Σₖ x[b, i, k] y[b, j, k]`.
#[derive(Clone, Debug)]
pub(crate) struct Space {
    pub batch: Axes,
    pub i: Axes,
    pub j: Axes,
    pub k: Axes,
}

/// The strides of the tensors of a product; no strides for a tensor that does not take part.
#[derive(Clone, Copy, Default)]
pub(crate) struct Strides<'a> {
    pub lhs: &'a [isize],
    pub rhs: &'a [isize],
    pub grad_lhs: &'a [isize],
    pub grad_rhs: &'a [isize],
    pub out: &'a [isize],
}

/// An input of a product, and the tensors that have its axes.
struct Side<'a> {
    input: &'a Input,
    strides: &'a [isize],
    grad_strides: &'a [isize],
    /// The input, its gradient, and the index of its vectors.
    tensors: [usize; 3],
}

impl Side<'_> {
    fn size(&self, place: usize) -> usize {
        self.input.shape[self.input.order[place]]
    }

    /// Sets the strides along the axis at a place, which is iterated over `size` indices: none, where the input is broadcast along it.
    fn set_strides(&self, place: usize, size: usize, stride: &mut Offsets) {
        let Input { shape, order, free } = self.input;
        let (axis, [input, grad, index]) = (order[place], self.tensors);
        if shape[axis] != size {
            return;
        }
        stride[input] = stride_along(self.strides, axis);
        stride[grad] = stride_along(self.grad_strides, axis);
        // Batch and free axes number the vectors.
        if place < free.end {
            let inner = &order[place + 1..free.end];
            stride[index] = inner.iter().map(|&axis| shape[axis]).product::<usize>() as isize;
        }
    }
}

/// 0 in a tensor that does not take part.
fn stride_along(strides: &[isize], axis: usize) -> isize {
    strides.get(axis).copied().unwrap_or(0)
}

impl Space {
    /// Counts that kernels make of a space are products of sizes of one input or of the output: by the plan, none of them wraps.
    pub fn new(plan: &Plan, strides: Strides<'_>) -> Self {
        let lhs = Side { input: &plan.lhs, strides: strides.lhs, grad_strides: strides.grad_lhs, tensors: [X, DX, X_INDEX] };
        let rhs = Side { input: &plan.rhs, strides: strides.rhs, grad_strides: strides.grad_rhs, tensors: [Y, DY, Y_INDEX] };
        let (i_places, j_places) = (plan.lhs.free.clone(), plan.rhs.free.clone());
        // Of the output by axis, of an input by the place in its order.
        let axis = |size: usize, of_lhs: Option<usize>, of_rhs: Option<usize>, of_out: Option<usize>| {
            let mut stride = [0; TENSORS];
            for (side, place) in [(&lhs, of_lhs), (&rhs, of_rhs)] {
                if let Some(place) = place {
                    side.set_strides(place, size, &mut stride);
                }
            }
            if let Some(axis) = of_out {
                stride[OUT] = stride_along(strides.out, axis);
                stride[OUT_INDEX] = plan.output[axis + 1..].iter().product::<usize>() as isize;
            }
            Axis { size, stride }
        };
        let batch = (0..i_places.start).map(|place| axis(plan.batch_shape[place], Some(place), Some(place), Some(place)));
        let i = i_places.clone().map(|place| axis(lhs.size(place), Some(place), None, Some(place)));
        let j = j_places.clone().map(|place| axis(rhs.size(place), None, Some(place), Some(place + i_places.len())));
        let mut k: SmallVec<[Axis; 2]> = (i_places.end..plan.lhs.order.len())
            .zip(j_places.end..)
            .map(|(in_lhs, in_rhs)| axis(lhs.size(in_lhs), Some(in_lhs), Some(in_rhs), None))
            .collect();
        // A sum may run in any order; this one lets contiguous axes be collapsed.
        k.sort_by_key(|axis| core::cmp::Reverse(axis.stride[X].abs()));
        Space { batch: Axes::new(batch), i: Axes::new(i), j: Axes::new(j), k: Axes::new(k) }
    }

    /// How many vectors an input has: as many as there are places for [`X_INDEX`] or [`Y_INDEX`].
    pub fn vectors(&self, place: usize) -> usize {
        let free = if place == X_INDEX { &self.i } else { &self.j };
        self.batch.split_by(place).0.len() * free.len()
    }

    /// Exchanges the inputs.
    pub fn swap(&mut self) {
        for axes in [&mut self.batch, &mut self.i, &mut self.j, &mut self.k] {
            for axis in &mut axes.0 {
                for (x, y) in [(X, Y), (DX, DY), (X_INDEX, Y_INDEX)] {
                    axis.stride.swap(x, y);
                }
            }
        }
        core::mem::swap(&mut self.i, &mut self.j);
    }
}

impl Axes {
    /// Leaves out axes of size 1, and collapses adjacent axes where every tensor allows it.
    pub fn new(axes: impl IntoIterator<Item = Axis>) -> Self {
        let mut merged: SmallVec<[Axis; 2]> = SmallVec::new();
        for axis in axes {
            match merged.last_mut() {
                _ if axis.size == 1 => {}
                Some(last) if (0..TENSORS).all(|t| last.stride[t] == axis.stride[t] * axis.size as isize) => {
                    *last = Axis { size: last.size * axis.size, stride: axis.stride };
                }
                _ => merged.push(axis),
            }
        }
        Axes(merged)
    }

    /// One by one, the last one fastest.
    #[cfg(feature = "_cube")]
    pub fn as_slice(&self) -> &[Axis] {
        &self.0
    }

    /// How many indices there are.
    pub fn len(&self) -> usize {
        self.0.iter().map(|axis| axis.size).product()
    }

    /// The stride of the last axis, if a tensor has one stride for all indices; 1 where there is a single index.
    pub fn stride_of(&self, tensor: usize) -> Option<isize> {
        let Some((last, outer)) = self.0.split_last() else { return Some(1) };
        let mut next = last.stride[tensor] * last.size as isize;
        let regular = outer.iter().rev().all(|axis| {
            let expected = next;
            next *= axis.size as isize;
            axis.stride[tensor] == expected
        });
        regular.then_some(last.stride[tensor])
    }

    /// Those axes along which a tensor is iterated, and the others.
    pub fn split_by(&self, tensor: usize) -> (Axes, Axes) {
        let (with, without) = self.0.iter().copied().partition(|axis: &Axis| axis.stride[tensor] != 0);
        (Axes(with), Axes(without))
    }

    /// The axes along which a tensor is iterated, in the order that its elements have in memory.
    pub fn in_memory_order(&self, tensor: usize) -> Axes {
        let mut axes = self.split_by(tensor).0;
        axes.0.sort_by_key(|axis| core::cmp::Reverse(axis.stride[tensor].unsigned_abs()));
        axes
    }

    /// The segments along the last axis that together make these indices: for each, how many came before it, its length, and where it
    /// begins.
    pub fn segments(&self, indices: Range<usize>) -> impl Iterator<Item = (usize, usize, Offsets)> {
        let (outer, inner) = self.split_last();
        let mut next = indices.start;
        core::iter::from_fn(move || {
            let (index, within) = (next, next % inner.size);
            let len = (inner.size - within).min(indices.end - next);
            next += len;
            (len > 0).then(|| (index - indices.start, len, advance(offset(outer, index / inner.size), &inner, within)))
        })
    }

    /// [`Axes::segments`], or a single one where this tensor has one stride along all axes.
    pub fn segments_in(&self, tensor: usize, indices: Range<usize>) -> impl Iterator<Item = (usize, usize, Offsets)> {
        let (is_one, len) = (self.stride_of(tensor).is_some(), indices.len());
        let segments = self.segments(indices).take(if is_one { 1 } else { usize::MAX });
        segments.map(move |(first, of_segment, from)| (first, if is_one { len } else { of_segment }, from))
    }

    /// These axes, then others.
    pub fn followed_by(&self, others: &Axes) -> Axes {
        Axes(self.0.iter().chain(&others.0).copied().collect())
    }

    /// All but the last axis, and the last; a size of 1 where there is none.
    pub fn inner(&self) -> (Axes, Axis) {
        let (outer, last) = self.split_last();
        (Axes(outer.into()), last)
    }

    /// How far the last axis strides.
    pub fn inner_stride(&self) -> Offsets {
        self.split_last().1.stride
    }

    fn split_last(&self) -> (&[Axis], Axis) {
        match self.0.split_last() {
            Some((last, outer)) => (outer, *last),
            None => (&[], Axis { size: 1, stride: [0; TENSORS] }),
        }
    }

    /// The offset of an index, from the first.
    #[inline(always)]
    pub fn offset(&self, index: usize) -> Offsets {
        offset(&self.0, index)
    }

    /// The offsets of these indices, one after the other.
    #[inline(always)]
    pub fn iter(&self, indices: Range<usize>) -> Iter<'_> {
        // Most often there is one axis, and the next index is a stride away.
        let stride = match self.0[..] {
            [axis] => Some(axis.stride),
            _ => None,
        };
        Iter { axes: self, stride, at: self.offset(indices.start), indices }
    }
}

/// See [`Axes::iter`]. A type, for `next` to be inlined into kernels: an adaptor's is not.
pub(crate) struct Iter<'a> {
    axes: &'a Axes,
    stride: Option<Offsets>,
    at: Offsets,
    indices: Range<usize>,
}

impl Iterator for Iter<'_> {
    type Item = Offsets;

    #[inline(always)]
    fn next(&mut self) -> Option<Offsets> {
        if self.indices.start >= self.indices.end {
            return None;
        }
        let here = self.at;
        self.indices.start += 1;
        match self.stride {
            Some(stride) => self.at = sum(here, stride),
            None if self.indices.start < self.indices.end => self.at = self.axes.offset(self.indices.start),
            None => {}
        }
        Some(here)
    }
}

#[inline(always)]
fn offset(axes: &[Axis], mut index: usize) -> Offsets {
    let mut offset = [0; TENSORS];
    let mut add = |at: usize, axis: &Axis| (0..TENSORS).for_each(|t| offset[t] += at as isize * axis.stride[t]);
    if let Some((first, rest)) = axes.split_first() {
        for axis in rest.iter().rev() {
            add(index % axis.size, axis);
            index /= axis.size;
        }
        add(index, first); // Most often the only one, and it needs no division.
    }
    offset
}

/// The offsets after some strides along an axis.
#[inline(always)]
pub(crate) fn advance(mut at: Offsets, axis: &Axis, strides: usize) -> Offsets {
    // A loop that is written out: adaptors are not surely inlined into kernels.
    let mut t = 0;
    while t < TENSORS {
        at[t] += strides as isize * axis.stride[t];
        t += 1;
    }
    at
}

#[inline(always)]
pub(crate) fn sum(mut a: Offsets, b: Offsets) -> Offsets {
    let mut t = 0;
    while t < TENSORS {
        a[t] += b[t];
        t += 1;
    }
    a
}
