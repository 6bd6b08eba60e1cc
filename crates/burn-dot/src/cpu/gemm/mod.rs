//! Batches of matrix products: `c[b, i, j] = Σₖ a[b, i, k] b[b, j, k]`, blocked for caches and threads, with an epilogue.
//!
//! The loops are those of Goto and van de Geijn (<https://doi.org/10.1145/1356052.1356053>). [`Blocking`] decides how a product is cut; a
//! [`Worker`] packs the lanes of a block, or reads them in place ([`pack`]), multiplies them by the vectors of the other side ([`tile`]),
//! ends what is complete ([`epilogue`]), and rounds it ([`output`]).
//!
//! Elements of bf16 are multiplied in [`pairs`] where the processor has a faster instruction for them, the last axis of K is even, and no element is
//! so small that it would be lost: of all rows, so that one row's elements may decide how another's sums are rounded.
//!
//! # Accuracy
//!
//! A rounding of the compute dtype loses at most ε/2 of the sum of absolute terms. On the way to an output there are at most 88: 64 in a
//! register ([`CHAIN`](tile)), 4, or 8 of pairs, as a tile adds the sums of its block of K, and 16 as an output adds such blocks. Longer sums
//! go on in a workspace, as pairs of a sum and its rounding error, which adds one: at any K, and on any number of threads.
//!
//! Rounding errors of both signs cancel: most often a few ε are left.

use core::ops::Range;

use super::{
    aligned::LINE,
    element::Compute,
    layout::{Axes, Y_INDEX},
    streaming::FenceOnDrop,
    threads,
};

mod blocking;
mod epilogue;
mod input;
mod output;
mod pack;
mod pairs;
mod tile;
mod worker;

use blocking::{Blocking, Destination, Sizes, Whole};
pub(super) use epilogue::Epilogue;
pub(super) use input::Input;
use input::Side;
pub(super) use output::Output;
use worker::Worker;

/// A batch of products: which axes are which, and which tensors.
pub(super) struct Product<'a, R> {
    pub batch: &'a Axes,
    pub rows: &'a Axes,
    pub columns: &'a Axes,
    pub sum: &'a Axes,
    pub a: Input<R>,
    pub b: Input<R>,
    /// Factors of `b`, one for each index of K, by [`Y_INDEX`].
    pub b_factors: Option<&'a [R]>,
    pub c: Output<R>,
    pub epilogue: Epilogue<'a, R>,
}

impl<R: Compute> Product<'_, R> {
    /// Multiplies, and writes every element of `c`.
    ///
    /// # Safety
    ///
    /// Every index of the axes is within the tensors and the factors, none of them is empty, and nobody writes to them. Nothing else reads or
    /// writes `c`, which is initialized.
    pub unsafe fn run(&self) {
        // SAFETY: every index is within the inputs, and a pair is of two indices along the last axis of K.
        unsafe {
            match pairs::halved(self) {
                Some(sum) => {
                    let [a, b] = [self.a, self.b].map(|input| input.in_pairs(&self.sum.inner().1));
                    Product { sum: &sum, a, b, ..*self }.multiply();
                }
                None => self.multiply(),
            }
        }
    }

    /// [`Product::run`], of the elements, or the pairs, that the inputs give.
    ///
    /// # Safety
    ///
    /// As there.
    unsafe fn multiply(&self) {
        let stride = |axes: &Axes| axes.stride_of(self.c.tensor);
        let inner = |axes: &Axes| axes.inner_stride()[self.c.tensor];
        // The lanes are those that are contiguous in the output, if any are.
        let lanes_are_rows = inner(self.rows) == 1 && inner(self.columns) != 1;
        let a = Side { free: self.rows, k: self.sum, input: self.a, factors: None };
        let factors = self.b_factors.map(|factors| (factors, Y_INDEX));
        let b = Side { free: self.columns, k: self.sum, input: self.b, factors };
        let (lanes, broadcast) = if lanes_are_rows { (a, b) } else { (b, a) };
        let is_read_again = match self.epilogue {
            Epilogue::None | Epilogue::Scale { .. } => false,
            Epilogue::Project { .. } => true,
        };
        let whole = match (&self.epilogue, lanes_are_rows) {
            (Epilogue::Project { dots: None, .. }, true) => Whole::Broadcast,
            (Epilogue::Project { dots: None, .. }, false) => Whole::Lanes,
            _ => Whole::Nothing,
        };
        let is_regular = stride(lanes.free) == Some(1) && stride(broadcast.free).is_some();
        let to = Destination { whole, is_compute: self.c.is_compute, is_regular, is_read_again };
        let sizes = Sizes {
            batches: self.batch.len(),
            lanes: lanes.free.len(),
            broadcast: broadcast.free.len(),
            k: self.sum.len(),
            element: size_of::<R>(),
        };
        let work = sizes.batches.saturating_mul(sizes.lanes).saturating_mul(sizes.broadcast).saturating_mul(sizes.k);
        let blocking = Blocking::new(sizes, to, threads::count(work));
        let task = Tasks { product: self, lanes, broadcast, lanes_are_rows, whole, sizes, blocking };
        // SAFETY: `task` has the axes and tensors of this product: every index is within them, nothing is empty, and nothing else reads or
        // writes `c`, which is initialized.
        unsafe {
            match blocking.k_parts {
                1 => task.run(work),
                parts => task.run_by_k(work, parts),
            }
        }
    }
}

/// A product, and how it is cut.
struct Tasks<'a, R> {
    product: &'a Product<'a, R>,
    lanes: Side<'a, R>,
    broadcast: Side<'a, R>,
    /// Whether the lanes are the rows of `c`, not its columns.
    lanes_are_rows: bool,
    whole: Whole,
    sizes: Sizes,
    blocking: Blocking,
}

impl<R: Compute> Tasks<'_, R> {
    /// Each task writes a part of the output.
    ///
    /// # Safety
    ///
    /// As for [`Product::run`].
    unsafe fn run(&self, work: usize) {
        let Blocking { lane_parts, broadcast_parts, streams, .. } = self.blocking;
        let per_batch = lane_parts * broadcast_parts;
        let tasks = per_batch * self.sizes.batches;
        threads::for_each_range(tasks, work / tasks, |range| {
            let _fence = FenceOnDrop { streams };
            let mut worker = Worker::new(self);
            for task in range {
                let (batch, part) = (task / per_batch, task % per_batch);
                let lanes = self.lanes_of(part % lane_parts);
                let broadcast = threads::part(self.sizes.broadcast, broadcast_parts, part / lane_parts);
                // SAFETY: the part is one of this batch index, and parts of the output are disjoint.
                unsafe { worker.part(self.product.batch.offset(batch), lanes, broadcast) };
            }
        });
    }

    /// The lanes of a part. Where they are streamed each part begins a cache line, if the first does.
    fn lanes_of(&self, part: usize) -> Range<usize> {
        let unit = if self.blocking.streams { LINE / size_of::<R>() } else { 1 };
        threads::part_of(self.sizes.lanes, self.blocking.lane_parts, part, unit)
    }

    /// Each task sums over a part of K, for all outputs of a batch index.
    ///
    /// # Safety
    ///
    /// As for [`Product::run`].
    unsafe fn run_by_k(&self, work: usize, parts: usize) {
        let Sizes { batches, lanes, broadcast, k, .. } = self.sizes;
        let sums = threads::map(batches * parts, work, |task| {
            let mut worker = Worker::new(self);
            let batch_at = self.product.batch.offset(task / parts);
            worker.set(batch_at, 0..lanes, 0..broadcast);
            // SAFETY: the block is all of a batch index, and its part of K is this task's; it is accumulated in a workspace.
            unsafe { worker.accumulate(batch_at, threads::part(k, parts, task % parts)) };
            worker.accumulators
        });
        let (mut worker, mut sums) = (Worker::new(self), sums.into_iter());
        for batch in 0..batches {
            let batch_at = self.product.batch.offset(batch);
            worker.accumulators = sums.next().expect("at least one part");
            sums.by_ref().take(parts - 1).for_each(|more| worker.accumulators.add(&more));
            worker.set(batch_at, 0..lanes, 0..broadcast);
            // SAFETY: the block is all of this batch index, and all parts of its sums are there.
            unsafe { worker.end(0..lanes) };
        }
    }
}
