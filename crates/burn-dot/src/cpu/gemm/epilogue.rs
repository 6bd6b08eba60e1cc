//! What is left to do with a block whose sums are complete: it is scaled, or projected.

use alloc::vec::Vec;
use core::ops::Range;

use super::{
    super::{
        compensated::{self, Compensated},
        element::{self, Compute},
        layout::{Axes, Offsets, X_INDEX},
        loops, norms,
        simd::{Isa, Task},
        strided::CHUNK,
    },
    input::{Input, Places},
    output::Block,
};

/// What is done with complete sums.
#[derive(Clone, Copy)]
pub(in super::super) enum Epilogue<'a, R> {
    None,
    /// Multiplies each element by the factors of its row and its column, and keeps it in [-1, 1].
    Scale {
        rows: &'a [R],
        columns: &'a [R],
    },
    /// Multiplies each row by its factor, and subtracts its projection on the vector whose gradient it is.
    Project {
        x: Input<R>,
        scales: &'a [R],
        /// `x·p / ‖x‖` of each row `p`, where that is known: else rows are completed as a whole.
        dots: Option<&'a [f64]>,
    },
}

impl<R> Epilogue<'_, R> {
    /// Whether none of its results may become infinite.
    pub fn is_finite(&self) -> bool {
        match self {
            Epilogue::None => false,
            Epilogue::Scale { .. } | Epilogue::Project { .. } => true,
        }
    }
}

/// Multiplies each element of a block by the factors of its lane and its column, and keeps it in [-1, 1].
///
/// # Safety
///
/// The block has an element for each factor of a lane in a column for each factor of a broadcast vector, all initialized; nothing
/// else reads or writes them.
pub(super) struct Scale<'a, R> {
    pub block: Block<R>,
    pub lanes: &'a [R],
    pub broadcast: &'a [R],
}

impl<R: Compute> Task for Scale<'_, R> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Isa>(self, isa: S) {
        for (column, &factor) in self.broadcast.iter().enumerate() {
            // SAFETY: the task says that the column is initialized, and its own.
            let column = unsafe { core::slice::from_raw_parts_mut(self.block.column(column), self.lanes.len()) };
            let lanes = R::lanes::<S>();
            let (mut x, mut factors) = (column.chunks_exact_mut(lanes), self.lanes.chunks_exact(lanes));
            for (x, factors) in (&mut x).zip(&mut factors) {
                // SAFETY: both have the lanes of a vector.
                unsafe {
                    let scale = R::mul_vectors(isa, R::load_vector(isa, factors.as_ptr()), R::splat(isa, factor));
                    let scaled = R::mul_vectors(isa, R::load_vector(isa, x.as_ptr()), scale);
                    R::store_vector(isa, R::clamp(isa, scaled, R::from_f64(1.0)), x.as_mut_ptr());
                }
            }
            for (x, &other) in x.into_remainder().iter_mut().zip(factors.remainder()) {
                *x = element::clamp_to_one(*x * (other * factor));
            }
        }
    }
}

/// `p ← s (p − x (x·p) s²)` for the rows `p` of a block, the gradients of the vectors `x`; without the projection where the norm of `x` is
/// below its epsilon.
///
/// # Safety
///
/// The block has an element for each of the lanes in each of the columns, initialized, which nothing else reads or writes; and
/// `x` one that can be read, at the offset that lane and column have there.
pub(super) struct Project<'a, R> {
    pub block: Block<R>,
    /// Whether a row is a column of the block, contiguous, or perpendicular to them.
    pub rows_are_columns: bool,
    pub lanes: (&'a Axes, Range<usize>),
    pub columns: &'a Places,
    pub x: Input<R>,
    pub scales: &'a [R],
    /// `s (x·p)` of each row, where it is known; else the block holds whole rows.
    pub dots: Option<&'a [f64]>,
}

impl<R: Compute> Task for Project<'_, R> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Isa>(self, isa: S) {
        // SAFETY: the task says so of the block and of `x`.
        unsafe { if self.rows_are_columns { self.along_lanes(isa) } else { self.across_columns(isa) } }
    }
}

/// Rows perpendicular to the columns of a block: some of its lanes.
struct Perpendicular {
    /// The first lane, and how far it is from the first row of `x`.
    lane: usize,
    at: isize,
    rows: usize,
    /// Columns that follow one another in memory, both of the block and of `x`, and can be taken as one.
    group: usize,
}

impl<R: Compute> Project<'_, R> {
    /// What `x` and `p` of a row are multiplied by, given its [`X_INDEX`]; `dot` is `x·p`, for a row whose dot product is not known.
    #[inline(always)]
    fn coefficients(&self, index: isize, dot: f64) -> (f64, f64) {
        let norm = norms::Scale(self.scales[index as usize].to_f64());
        let dot = self.dots.map_or(norm.inverse() * dot, |dots| dots[index as usize]);
        (dot * norm.projected(), norm.inverse())
    }

    /// The lanes in parts that fit a buffer: the first lane, their number, and where they are.
    fn parts(&self) -> impl Iterator<Item = (usize, usize, Offsets)> {
        let stride = self.lanes.0.inner_stride();
        self.lanes.0.segments(self.lanes.1.clone()).flat_map(move |(first, len, from)| {
            (0..len).step_by(CHUNK).map(move |part| {
                let at = core::array::from_fn(|tensor| from[tensor] + part as isize * stride[tensor]);
                (first + part, CHUNK.min(len - part), at)
            })
        })
    }

    /// Reads elements of `x` along the lanes.
    ///
    /// # Panics
    ///
    /// If there are more than [`CHUNK`] lanes to be gathered or converted.
    ///
    /// # Safety
    ///
    /// `at` is how far the first of `len` lanes, which are the stride of `lanes.0` apart, is from the first element of `x`. All of them are
    /// within `x`, and nobody writes to them while they are borrowed.
    #[inline(always)]
    unsafe fn read<'b>(&self, at: isize, len: usize, buffer: &'b mut [R; CHUNK]) -> &'b [R] {
        let stride = self.lanes.0.inner_stride()[self.x.tensor];
        let from = self.x.element(at);
        if self.x.is_compute && stride == 1 {
            // SAFETY: the lanes are contiguous elements of the compute dtype within `x`, and nobody writes to them meanwhile.
            return unsafe { core::slice::from_raw_parts(from.cast(), len) };
        }
        let buffer = &mut buffer[..len];
        // SAFETY: the lanes are within `x`, `stride` apart, and the buffer has an element for each.
        unsafe { self.x.load(from, (1, 0), (len, stride), buffer.as_mut_ptr(), len) };
        buffer
    }

    /// Lanes of a column: what [`Project::read`] gives, and the elements of the block.
    ///
    /// # Safety
    ///
    /// As there; from the lane of the column on, the block has `len` contiguous elements, initialized, which nothing else reads or writes.
    #[inline(always)]
    unsafe fn part<'b>(
        &self,
        column: usize,
        lane: usize,
        at: isize,
        len: usize,
        buffer: &'b mut [R; CHUNK],
    ) -> (&'b [R], &'b mut [R]) {
        // SAFETY: the lanes are within `x`, and from the lane of the column on there are `len` contiguous elements of the block: part of a
        // column, or columns that are a group. They are the task's alone, and no other slice of the block is alive.
        unsafe { (self.read(at, len, buffer), core::slice::from_raw_parts_mut(self.block.column(column).add(lane), len)) }
    }

    /// Rows that are contiguous, one after the other.
    ///
    /// # Safety
    ///
    /// As the task says.
    #[inline(always)]
    unsafe fn along_lanes<S: Isa>(&self, isa: S) {
        let mut buffer = [R::default(); CHUNK];
        let parts: Vec<(usize, usize, isize)> = self.parts().map(|(lane, len, at)| (lane, len, at[self.x.tensor])).collect();
        for row in 0..self.columns.len() {
            let [x_at, index] = [self.x.tensor, X_INDEX].map(|tensor| self.columns.offset(row, tensor));
            let mut dot = Compensated::default();
            if self.dots.is_none() {
                for &(lane, len, at) in &parts {
                    // SAFETY: these are some of the lanes, in one of the columns.
                    let (x, p) = unsafe { self.part(row, lane, x_at + at, len, &mut buffer) };
                    dot.add(loops::dot_of_any(isa, x, p));
                }
            }
            let (projection, scale) = self.coefficients(index, dot.total());
            for &(lane, len, at) in &parts {
                // SAFETY: as above.
                let (x, p) = unsafe { self.part(row, lane, x_at + at, len, &mut buffer) };
                loops::project(isa, p, scale, projection, x);
            }
        }
    }

    /// Rows perpendicular to the columns, many at a time.
    ///
    /// # Safety
    ///
    /// As the task says.
    #[inline(always)]
    unsafe fn across_columns<S: Isa>(&self, isa: S) {
        let index_stride = self.lanes.0.inner_stride()[X_INDEX];
        let first_index = self.columns.offset(0, X_INDEX);
        let (mut projections, mut scales) = ([0.0; CHUNK], [0.0; CHUNK]);
        for (lane, rows, at) in self.parts() {
            let block = Perpendicular { lane, at: at[self.x.tensor], rows, group: self.group(rows) };
            // SAFETY: these are some of the lanes.
            unsafe {
                if self.dots.is_none() {
                    self.dots_perpendicular(isa, &block, &mut projections);
                }
                for i in 0..rows {
                    let index = first_index + at[X_INDEX] + i as isize * index_stride;
                    (projections[i], scales[i]) = self.coefficients(index, projections[i]);
                }
                for i in rows..rows * block.group {
                    (projections[i], scales[i]) = (projections[i - rows], scales[i - rows]);
                }
                self.for_each_group(
                    &block,
                    #[inline(always)]
                    |_, x, p| loops::project_elementwise(isa, p, &scales[..p.len()], &projections[..p.len()], x),
                );
            }
        }
    }

    /// How many columns of so many rows are one, as far as memory goes.
    fn group(&self, rows: usize) -> usize {
        let dense = self.x.is_compute
            && self.lanes.0.inner_stride()[self.x.tensor] == 1
            && self.block.stride == rows as isize
            && self.columns.stride(0..self.columns.len(), self.x.tensor) == Some(rows as isize);
        if dense { CHUNK / rows } else { 1 }
    }

    /// Calls `f` with the index of the first column of each group, with its elements of `x`, and with those of the block.
    ///
    /// # Safety
    ///
    /// As the task says; `block` is some of its lanes.
    #[inline(always)]
    unsafe fn for_each_group(&self, block: &Perpendicular, mut f: impl FnMut(usize, &[R], &mut [R])) {
        let Perpendicular { lane, at, rows, group } = *block;
        let mut buffer = [R::default(); CHUNK];
        for first in (0..self.columns.len()).step_by(group) {
            let len = rows * group.min(self.columns.len() - first);
            // SAFETY: these are some of the lanes, in columns that are contiguous if they are a group.
            unsafe {
                let (x, p) = self.part(first, lane, self.columns.offset(first, self.x.tensor) + at, len, &mut buffer);
                f(first, x, p);
            }
        }
    }

    /// `x·p` of rows perpendicular to the columns.
    ///
    /// # Safety
    ///
    /// As the task says; `block` is some of its lanes.
    #[inline(always)]
    unsafe fn dots_perpendicular<S: Isa>(&self, isa: S, block: &Perpendicular, dots: &mut [f64; CHUNK]) {
        let Perpendicular { rows, group, .. } = *block;
        let (mut partial, mut lost) = ([0.0; CHUNK], [0.0; CHUNK]);
        let (partial, lost, dots) = (&mut partial[..rows * group], &mut lost[..rows * group], &mut dots[..rows * group]);
        dots.fill(0.0);
        // SAFETY: `block` is some of the task's lanes, and the task's pointers are as it says.
        unsafe {
            self.for_each_group(
                block,
                #[inline(always)]
                |first, x, p| {
                    loops::add_elementwise_products(isa, &mut partial[..p.len()], x, p);
                    if (first / group) % PARTIAL == PARTIAL - 1 || first + group >= self.columns.len() {
                        compensated::add(dots, lost, partial);
                        partial.fill(0.0);
                    }
                },
            );
        }
        for row in 0..rows {
            let mut total = Compensated::default();
            for i in (row..rows * group).step_by(rows) {
                total.add(compensated::total(dots[i], lost[i]));
            }
            dots[row] = total.total();
        }
    }
}

/// Products added up before their sum goes to one that is compensated.
const PARTIAL: usize = 64;
