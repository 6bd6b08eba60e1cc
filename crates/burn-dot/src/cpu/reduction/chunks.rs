//! How rows are read and gradients written: whole, where they are contiguous, or by chunks that are gathered and scattered.

use alloc::{vec, vec::Vec};
use core::ops::Range;

use super::{
    super::{
        compensated::Compensated,
        element::Element,
        layout::{self, Axes, Axis, DX, DY, Offsets, X, Y, advance},
        simd,
        streaming::{FenceOnDrop, STREAM_FROM},
        strided::{CHUNK, Strided, StridedMut},
    },
    Normalized,
    tasks::{GradientOfSum, Gradients, StridedRows, SumRows},
};

/// Rows that go to the loops at once.
pub(super) const GROUP: usize = 64;

/// How gradients are written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum GradWriter {
    /// Where they belong.
    Direct,
    /// To a buffer, and from there to where they belong, element by element.
    Scatter,
    /// Where they belong, by non-temporal stores.
    Stream,
}

impl GradWriter {
    /// For so many bytes of gradients.
    pub fn new(k: &Axes, bytes: usize, in_place: bool) -> Self {
        let stride = k.inner().1.stride;
        // Contiguous, or not wanted, or of one element: 0.
        match [DX, DY].iter().all(|&tensor| matches!(stride[tensor], 0 | 1)) {
            false => GradWriter::Scatter,
            true if bytes >= STREAM_FROM && !in_place => GradWriter::Stream,
            true => GradWriter::Direct,
        }
    }

    /// To be held while a task writes.
    pub fn fence(self) -> FenceOnDrop {
        FenceOnDrop { streams: self == GradWriter::Stream }
    }
}

/// Rows at equal strides.
pub(super) struct Group {
    /// The first.
    pub start: Offsets,
    pub rows: usize,
    pub stride: Offsets,
}

impl Group {
    /// The offset of a row in a tensor.
    pub fn offset(&self, row: usize, tensor: usize) -> isize {
        self.start[tensor] + row as isize * self.stride[tensor]
    }

    /// The vectors of a group whose rows are whole.
    fn vectors<T>(&self, [x, y]: [*const T; 2]) -> [StridedRows<T>; 2] {
        [
            StridedRows { at: x.wrapping_offset(self.start[X]), stride: self.stride[X] },
            StridedRows { at: y.wrapping_offset(self.start[Y]), stride: self.stride[Y] },
        ]
    }
}

/// The groups of a range of rows. A type, for `next` to be inlined: an adaptor's is not.
pub(super) struct Groups {
    outer: Axes,
    inner: Axis,
    most: usize,
    range: Range<usize>,
    /// The next row, and how many follow it at the same stride.
    start: Offsets,
    left: usize,
}

impl Iterator for Groups {
    type Item = Group;

    #[inline(always)]
    fn next(&mut self) -> Option<Group> {
        if self.range.is_empty() {
            return None;
        }
        if self.left == 0 {
            let within = self.range.start % self.inner.size;
            self.start = advance(self.outer.offset(self.range.start / self.inner.size), &self.inner, within);
            self.left = (self.inner.size - within).min(self.range.len());
        }
        let group = Group { start: self.start, rows: self.most.min(self.left), stride: self.inner.stride };
        self.start = advance(self.start, &self.inner, group.rows);
        self.left -= group.rows;
        self.range.start += group.rows;
        Some(group)
    }
}

/// Rows whose gradients are written.
pub(super) struct GradRows<'a, T> {
    pub vectors: [*const T; 2],
    pub grads: [Option<*mut T>; 2],
    /// The gradient of the output of each row.
    pub out_grads: &'a [f64],
    /// Each row, where the product is normalized.
    pub normalized: Option<&'a [Normalized]>,
}

/// The chunks of a row: parts of strided views along the contracted axes.
pub(super) struct Chunks {
    outer: Axes,
    inner: Axis,
    /// Whether both inputs are contiguous along the last axis.
    contiguous: bool,
    /// Whether they are so along all of them.
    whole: bool,
}

/// A chunk of a row: where it is, and which of the contracted indices it holds.
struct Chunk {
    at: Offsets,
    range: Range<usize>,
}

/// Buffers for chunks of both inputs that are not contiguous, and of both gradients that are not written where they belong at
/// once. Empty where there are none.
pub(super) struct Scratch<T> {
    vectors: [Vec<T>; 2],
    grads: [Vec<T>; 2],
}

impl<T: Element> Scratch<T> {
    pub fn new(chunks: &Chunks, writer: GradWriter) -> Self {
        let buffer = |needed: bool| vec![T::default(); if needed { CHUNK } else { 0 }];
        let (vectors, grads) = (!chunks.contiguous, writer != GradWriter::Direct);
        Scratch { vectors: [buffer(vectors), buffer(vectors)], grads: [buffer(grads), buffer(grads)] }
    }
}

impl Chunks {
    pub fn new(k: &Axes) -> Self {
        let (outer, inner) = k.inner();
        let contiguous = [X, Y].iter().all(|&t| inner.stride[t] == 1);
        let whole = contiguous && outer.len() == 1;
        Chunks { outer, inner, contiguous, whole }
    }

    /// Groups of rows for the loops: of one row each, where rows are not whole.
    pub fn groups(&self, rows: &Axes, range: Range<usize>, writer: GradWriter) -> Groups {
        let most = if self.whole && writer != GradWriter::Scatter { GROUP } else { 1 };
        let (outer, inner) = rows.inner();
        Groups { outer, inner, most, range, start: Offsets::default(), left: 0 }
    }

    fn chunks(&self, row: Offsets, writer: GradWriter) -> impl Iterator<Item = Chunk> {
        let Chunks { outer, inner, contiguous, .. } = self;
        let most = if *contiguous && writer != GradWriter::Scatter { inner.size } else { CHUNK };
        (0..outer.len()).flat_map(move |block| {
            let start = layout::sum(row, outer.offset(block));
            (0..inner.size).step_by(most).map(move |first| Chunk {
                at: advance(start, inner, first),
                range: block * inner.size + first..block * inner.size + (first + most).min(inner.size),
            })
        })
    }

    /// A chunk of an input, contiguous: in place, or gathered.
    ///
    /// # Safety
    ///
    /// The chunk is within the input.
    unsafe fn read<T: Element>(&self, x: *const T, tensor: usize, chunk: &Chunk, scratch: &mut Scratch<T>) -> StridedRows<T> {
        let at = x.wrapping_offset(chunk.at[tensor]);
        if self.contiguous {
            return StridedRows { at, stride: 0 };
        }
        let strided = Strided { at, stride: self.inner.stride[tensor], len: chunk.range.len() };
        // SAFETY: the chunk is within the input, the caller says, and fits a buffer.
        StridedRows { at: unsafe { strided.gather(&mut scratch.vectors[tensor]) }.as_ptr(), stride: 0 }
    }

    /// [`Chunks::read`] of both inputs.
    ///
    /// # Safety
    ///
    /// The chunk is within both.
    unsafe fn read_both<T: Element>(
        &self,
        [x, y]: [*const T; 2],
        chunk: &Chunk,
        scratch: &mut Scratch<T>,
    ) -> [StridedRows<T>; 2] {
        // SAFETY: the chunk is within both, the caller says.
        unsafe { [self.read(x, X, chunk, scratch), self.read(y, Y, chunk, scratch)] }
    }

    /// The [`SumRows`] of a group.
    ///
    /// # Safety
    ///
    /// The rows are within the inputs, and nobody writes to them.
    pub unsafe fn sums<T: Element, const N: usize>(
        &self,
        vectors: [*const T; 2],
        group: &Group,
        scratch: &mut Scratch<T>,
        out: &mut [[f64; N]],
    ) {
        if self.whole {
            // SAFETY: whole rows are contiguous, and within the inputs, the caller says.
            return unsafe { simd::dispatch(SumRows { vectors: group.vectors(vectors), len: self.inner.size, out }) };
        }
        let mut totals = [Compensated::default(); N];
        for chunk in self.chunks(group.start, GradWriter::Direct) {
            let mut sums = [[0.0; N]];
            // SAFETY: the row is within the inputs, the caller says, and so is a chunk of it, which is contiguous once it has
            // been read.
            unsafe {
                let vectors = self.read_both(vectors, &chunk, scratch);
                simd::dispatch(SumRows { vectors, len: chunk.range.len(), out: &mut sums });
            }
            totals.iter_mut().zip(sums[0]).for_each(|(total, sum)| total.add(sum));
        }
        out[0] = totals.map(Compensated::total);
    }

    /// Writes the gradients of a group, where wanted, and adds to the sum of rows, where there is one.
    ///
    /// # Safety
    ///
    /// The rows are within the inputs, and the gradients, which are initialized, and which nobody else reads or writes; if they
    /// are streamed, not before a [`FenceOnDrop`] is dropped. They may be the inputs' own rows.
    pub unsafe fn write_gradients<T: Element>(
        &self,
        rows: GradRows<'_, T>,
        group: &Group,
        writer: GradWriter,
        sum: &mut [f64],
        scratch: &mut Scratch<T>,
    ) {
        let GradRows { vectors, grads, out_grads, normalized } = rows;
        if self.whole && writer != GradWriter::Scatter {
            let targets = [(grads[0], DX), (grads[1], DY)]
                .map(|(grad, t)| grad.map(|grad| (grad.wrapping_offset(group.start[t]), group.stride[t])));
            let vectors = group.vectors(vectors);
            // SAFETY: whole rows are contiguous in the inputs, and in the gradients, which the writer does not scatter: `inner.size`
            // elements each, and as many rows as `out_grads`. The group's gradients are the caller's alone: if streamed, until a fence.
            return unsafe {
                simd::dispatch(Gradients {
                    vectors,
                    len: self.inner.size,
                    grads: targets,
                    stream: (writer == GradWriter::Stream).then_some(&mut scratch.grads[0]),
                    out_grads,
                    normalized,
                    sum,
                })
            };
        }
        for chunk in self.chunks(group.start, writer) {
            let len = chunk.range.len();
            // SAFETY: the row is within the inputs, the caller says, and so is a chunk of it.
            let vectors = unsafe { self.read_both(vectors, &chunk, scratch) };
            let places = [(grads[0], DX), (grads[1], DY)].map(|(grad, t)| grad.map(|grad| grad.wrapping_offset(chunk.at[t])));
            let buffers = scratch.grads.each_mut().map(|buffer| buffer.as_mut_ptr());
            let target = |side: usize| {
                places[side].map(|place| if writer == GradWriter::Scatter { (buffers[side], 0) } else { (place, 0) })
            };
            let sum = if sum.is_empty() { &mut [][..] } else { &mut sum[chunk.range] };
            // SAFETY: a chunk is contiguous once it has been read. Its gradients go to buffers of `CHUNK` elements, to which chunks are cut
            // if the writer scatters; else to where they belong, contiguous there, and nobody else has this part of them.
            unsafe {
                simd::dispatch(Gradients {
                    vectors,
                    len,
                    grads: [target(0), target(1)],
                    stream: (writer == GradWriter::Stream).then_some(&mut scratch.grads[0]),
                    out_grads,
                    normalized,
                    sum,
                });
            }
            if writer == GradWriter::Scatter {
                for (side, tensor) in [(0, DX), (1, DY)] {
                    if let Some(at) = places[side] {
                        // SAFETY: the chunk is within the gradient, the caller says.
                        unsafe { StridedMut { at, stride: self.inner.stride[tensor] }.scatter(&scratch.grads[side][..len]) };
                    }
                }
            }
        }
    }

    /// Writes `a sum + b x` to the gradient of the vector at a place.
    ///
    /// # Safety
    ///
    /// The vector is within `x` and `dx`, which is initialized, and which nobody else reads or writes there. They may be the
    /// same.
    #[expect(clippy::too_many_arguments, reason = "one place calls it")]
    pub unsafe fn write_sum<T: Element>(
        &self,
        x: *const T,
        dx: *mut T,
        at: Offsets,
        writer: GradWriter,
        (a, sum): (f64, &[f64]),
        b: Option<f64>,
        scratch: &mut Scratch<T>,
    ) {
        for chunk in self.chunks(at, writer) {
            let len = chunk.range.len();
            let at = dx.wrapping_offset(chunk.at[DX]);
            let to = if writer == GradWriter::Scatter { scratch.grads[0].as_mut_ptr() } else { at };
            // SAFETY: the chunk is within `x` and `dx`, the caller says; it is contiguous once it has been read, and `to` has its
            // elements: a buffer, or the gradient where it is contiguous.
            unsafe {
                let x = self.read(x, X, &chunk, scratch).at;
                simd::dispatch(GradientOfSum { to, a, sum: &sum[chunk.range], b, x });
                if writer == GradWriter::Scatter {
                    StridedMut { at, stride: self.inner.stride[DX] }.scatter(&scratch.grads[0][..len]);
                }
            }
        }
    }
}
