//! Products where one input has a single vector for each batch index: rows with rows, and vectors with matrices.
//!
//! `out[b, j] = Σₖ x[b, k] y[b, j, k]`. Every contiguous row is read once: its dot product and its norm come from one pass, and in the
//! backward pass its gradient is written while it is still in the cache. Memory bandwidth sets the pace.
//!
//! [`Chunks`] decides how rows are read, [`GradWriter`] how gradients are written. Rows at equal strides go to the loops of [`tasks`] as one
//! group; only those are compiled for each instruction set.

use alloc::{vec, vec::Vec};
use core::{
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
};

use super::{
    compensated,
    element::{self, Compute, Element, clamp_to_one},
    layout::{self, Axes, DX, OUT, OUT_INDEX, Offsets, Space},
    norms::Scale,
    threads,
};

mod chunks;
mod tasks;

use chunks::{Chunks, FenceOnDrop, GROUP, GradRows, GradWriter, Group, Scratch};

/// Rows of a vector for each task that shares it, at least.
const ROWS_PER_SHARE: usize = 8;

/// The tensors of a product whose `x` has nothing free, each by its first element: the inputs, and [`ForwardTensors`] or
/// [`BackwardTensors`].
#[derive(Clone, Copy)]
pub(super) struct Rows<T, P> {
    pub x: *const T,
    pub y: *const T,
    pub pass: P,
}

/// What a forward pass writes.
#[derive(Clone, Copy)]
pub(super) struct ForwardTensors<O> {
    pub out: *mut O,
    /// One for each element of the output, if they are saved.
    pub saved: Option<*mut SavedRow>,
}

/// What a backward pass reads beside the inputs, and writes.
#[derive(Clone, Copy)]
pub(super) struct BackwardTensors<T, O> {
    /// The gradient of the output.
    pub grad: *const O,
    /// One for each element of the output, if they were saved.
    pub saved: Option<*const SavedRow>,
    /// The gradients of the inputs, where wanted.
    pub dx: Option<*mut T>,
    pub dy: Option<*mut T>,
}

// SAFETY: tasks on several threads read elements of dtypes that may be shared, and each writes to elements of its own: see `forward` and
// `backward`, which alone share one.
unsafe impl<T: Send + Sync, O: Send + Sync> Sync for Rows<T, ForwardTensors<O>> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync, O: Send + Sync> Sync for Rows<T, BackwardTensors<T, O>> {}

/// A normalized row in memory: the scale of each vector, and the cosine.
pub(super) type SavedRow = [f64; 3];

/// A row and its counterpart, normalized.
#[derive(Clone, Copy, Default)]
struct Normalized {
    scales: [Scale; 2],
    cosine: f64,
}

impl Normalized {
    /// From the sums of products; `None` where one may have left the range of f64.
    fn new<R: Compute>([xx, xy, yy]: [f64; 3], epsilon: f64) -> Option<Self> {
        let scales = [xx, yy].map(|square| Scale::new::<R>(square, epsilon));
        // Also below epsilon: products of tiny vectors are subnormal. The squares of the smallest are lost, but zeros are harmless.
        let tiny = |square: f64| element::sqrt(square) < *R::NORMS.start() && (square != 0.0 || xy != 0.0);
        let in_range = scales.iter().all(|scale| scale.is_within(R::NORMS)) && !tiny(xx) && !tiny(yy);
        in_range.then(|| Normalized { scales, cosine: xy * scales[0].inverse() * scales[1].inverse() })
    }

    fn save(&self) -> SavedRow {
        [self.scales[0].0, self.scales[1].0, self.cosine]
    }

    fn load([x, y, cosine]: SavedRow) -> Self {
        Normalized { scales: [Scale(x), Scale(y)], cosine }
    }
}

/// What every task of a product knows.
struct Reduction<'a, T, P> {
    rows: Rows<T, P>,
    chunks: &'a Chunks,
    writer: GradWriter,
    epsilon: Option<f64>,
}

/// The product. False where squares were met that f64 cannot hold: the output is then not to be used.
///
/// # Safety
///
/// Every index of `space` is within the tensors, nothing in it is empty, and nothing else reads or writes `out` and what is
/// saved, both of which are initialized.
pub(super) unsafe fn forward<T, O>(rows: Rows<T, ForwardTensors<O>>, space: &Space, epsilon: Option<f64>) -> bool
where
    T: Element,
    O: Element<Compute = T::Compute>,
{
    let product = &Reduction { rows, chunks: &Chunks::new(&space.k), writer: GradWriter::Direct, epsilon };
    let all = &space.batch.followed_by(&space.j);
    // SAFETY: the rows of the range are the space's, which the caller says is within the tensors; no two rows share an element of
    // the output.
    all_ranges(all.len(), space.k.len(), GradWriter::Direct, |range| unsafe { product.forward(all, range) })
}

/// Whether [`forward`] and [`backward`] are true of every normalized input: f64 holds all squares of the smaller dtypes.
pub(super) fn is_infallible<T: Element>() -> bool {
    T::Compute::NORMS.contains(&0.0) && T::Compute::NORMS.contains(&f64::INFINITY)
}

/// The gradients that are wanted. False as in [`forward`].
///
/// # Safety
///
/// Every index of `space` is within the tensors and what was saved, nothing in it is empty, and nothing else reads or writes `dx`
/// and `dy`, which are initialized. These may be `x` and `y` themselves where `in_place` says so and each element of `x` and `y`
/// is met once.
pub(super) unsafe fn backward<T, O>(
    rows: Rows<T, BackwardTensors<T, O>>,
    space: &Space,
    epsilon: Option<f64>,
    in_place: bool,
) -> bool
where
    T: Element,
    O: Element<Compute = T::Compute>,
{
    // Where x is broadcast along the batch its gradient is summed over it, as it is over j.
    let (own, broadcast) = match rows.pass.dx {
        Some(_) => space.batch.split_by(DX),
        None => (space.batch.clone(), Axes::new([])),
    };
    let others = broadcast.followed_by(&space.j);
    let (vectors, n, k) = (own.len(), others.len(), space.k.len());
    let written = vectors * (usize::from(rows.pass.dx.is_some()) + n * usize::from(rows.pass.dy.is_some()));
    let writer = GradWriter::new(&space.k, written.saturating_mul(k * size_of::<T>()), in_place);
    let chunks = &Chunks::new(&space.k);
    let product = &Reduction { rows, chunks, writer, epsilon };
    match n {
        // SAFETY: the rows of the range are the space's, which the caller says is within the tensors; no two rows share an
        // element of a gradient.
        1 => all_ranges(vectors, k, writer, |range| unsafe { product.pairs(&own, range) }),
        // SAFETY: as above.
        _ => unsafe { product.broadcast_vectors(&own, &others, k) },
    }
}

/// Cuts the work into ranges; true if all of them are.
fn all_ranges(count: usize, cost: usize, writer: GradWriter, task: impl Fn(Range<usize>) -> bool + Send + Sync) -> bool {
    let all = AtomicBool::new(true);
    threads::for_each_range(count, cost, |range| {
        let _fence = FenceOnDrop(writer);
        if !task(range) {
            all.store(false, Ordering::Relaxed);
        }
    });
    all.into_inner()
}

impl<T: Element, O: Element<Compute = T::Compute>> Reduction<'_, T, ForwardTensors<O>> {
    /// The output of some rows.
    ///
    /// # Safety
    ///
    /// `all` are rows of the space that [`forward`] was called with, and nothing else reads or writes what belongs to these.
    unsafe fn forward(&self, all: &Axes, range: Range<usize>) -> bool {
        let scratch = &mut Scratch::new(self.chunks, self.writer);
        for group in self.chunks.groups(all, range, self.writer) {
            let mut out = [[0.0]; GROUP];
            let out = &mut out[..group.rows];
            // SAFETY: the group is of these rows: it is within the tensors, and its part of the output ours alone.
            unsafe {
                match self.epsilon {
                    None => self.chunks.sums([self.rows.x, self.rows.y], &group, scratch, out),
                    Some(epsilon) => {
                        if !self.cosines(&group, epsilon, scratch, out) {
                            return false;
                        }
                    }
                }
                for (row, &[out]) in out.iter().enumerate() {
                    *self.rows.pass.out.offset(group.offset(row, OUT)) = O::from_f64(out);
                }
            }
        }
        true
    }

    /// The cosines of a group, saved if asked for. False where a square is beyond f64.
    ///
    /// # Safety
    ///
    /// The group is of the space that [`forward`] was called with, and nothing else reads or writes what belongs to it.
    unsafe fn cosines(&self, group: &Group, epsilon: f64, scratch: &mut Scratch<T>, out: &mut [[f64; 1]]) -> bool {
        let mut normalized = [Normalized::default(); GROUP];
        let normalized = &mut normalized[..group.rows];
        // SAFETY: as this function's own.
        if unsafe { !self.normalize(group, epsilon, scratch, normalized) } {
            return false;
        }
        for ([out], normalized) in out.iter_mut().zip(&*normalized) {
            *out = clamp_to_one(normalized.cosine);
        }
        if let Some(saved) = self.rows.pass.saved {
            for (row, normalized) in normalized.iter().enumerate() {
                // SAFETY: there is a place for each row, ours alone.
                unsafe { *saved.offset(group.offset(row, OUT_INDEX)) = normalized.save() };
            }
        }
        true
    }
}

impl<T: Element, P> Reduction<'_, T, P> {
    /// Normalizes the rows of a group. False where a square is beyond f64.
    ///
    /// # Safety
    ///
    /// The group is of the space that [`forward`] or [`backward`] was called with.
    unsafe fn normalize(&self, group: &Group, epsilon: f64, scratch: &mut Scratch<T>, to: &mut [Normalized]) -> bool {
        let mut sums = [[0.0; 3]; GROUP];
        let sums = &mut sums[..group.rows];
        // SAFETY: the rows of the space are within the inputs.
        unsafe { self.chunks.sums([self.rows.x, self.rows.y], group, scratch, sums) };
        for (to, &mut sums) in to.iter_mut().zip(sums) {
            let Some(normalized) = Normalized::new::<T::Compute>(sums, epsilon) else { return false };
            *to = normalized;
        }
        true
    }
}

impl<T: Element, O: Element<Compute = T::Compute>> Reduction<'_, T, BackwardTensors<T, O>> {
    /// As saved, or recomputed.
    ///
    /// # Safety
    ///
    /// The group is of the space that [`backward`] was called with.
    unsafe fn normalized(&self, group: &Group, epsilon: f64, scratch: &mut Scratch<T>, to: &mut [Normalized]) -> bool {
        let Some(saved) = self.rows.pass.saved else {
            // SAFETY: as this function's own.
            return unsafe { self.normalize(group, epsilon, scratch, to) };
        };
        for (row, to) in to.iter_mut().enumerate() {
            // SAFETY: a row was saved for each of the space, and nobody writes to it any more.
            *to = Normalized::load(unsafe { *saved.offset(group.offset(row, OUT_INDEX)) });
        }
        true
    }

    /// The gradients of the outputs of a group.
    ///
    /// # Safety
    ///
    /// The group is of the space that [`backward`] was called with.
    unsafe fn grads(&self, group: &Group) -> [f64; GROUP] {
        let mut grads = [0.0; GROUP];
        for (row, grad) in grads[..group.rows].iter_mut().enumerate() {
            // SAFETY: the gradient of the output has an element for each row of the space, and nobody writes to it.
            *grad = unsafe { *self.rows.pass.grad.offset(group.offset(row, OUT)) }.to_f64();
        }
        grads
    }

    /// Both gradients of rows with rows.
    ///
    /// # Safety
    ///
    /// `own` are rows of the space that [`backward`] was called with, and nothing else reads or writes the gradients of these.
    unsafe fn pairs(&self, own: &Axes, range: Range<usize>) -> bool {
        let scratch = &mut Scratch::new(self.chunks, self.writer);
        let mut normalized = [Normalized::default(); GROUP];
        for group in self.chunks.groups(own, range, self.writer) {
            // SAFETY: the group is of these rows.
            let grads = unsafe { self.grads(&group) };
            if let Some(epsilon) = self.epsilon {
                let normalized = &mut normalized[..group.rows];
                // SAFETY: the group is of these rows.
                if unsafe { !self.normalized(&group, epsilon, scratch, normalized) } {
                    return false;
                }
            }
            // SAFETY: the group is of these rows, whose gradients are ours alone.
            unsafe { self.write(&group, [self.rows.pass.dx, self.rows.pass.dy], &grads, &normalized, &mut [], scratch) };
        }
        true
    }

    /// A vector is broadcast over j (gemv). Where there are few vectors, several tasks share one, and their sums are added in the end.
    ///
    /// # Safety
    ///
    /// `own` are the vectors `x` of the space that [`backward`] was called with, `others` what each meets, and nothing else reads or
    /// writes the gradients of both.
    unsafe fn broadcast_vectors(&self, own: &Axes, others: &Axes, k: usize) -> bool {
        let (vectors, n) = (own.len(), others.len());
        let cost = vectors.saturating_mul(n).saturating_mul(k);
        let tasks = threads::tasks(cost);
        // A share has several rows: its sum, in f64, is then smaller than what it reads.
        let shares = if vectors >= tasks { 1 } else { tasks.div_ceil(vectors).min(n.div_ceil(ROWS_PER_SHARE)) };
        let width = if self.rows.pass.dx.is_some() { k } else { 0 };
        // SAFETY: each part is some of the rows of a vector of the space, and no two share an element of a gradient.
        let share = |vector: usize, part: usize, sum: &mut BroadcastSum| unsafe {
            self.rows_of_vector(own.offset(vector), others, threads::part(n, shares, part), sum)
        };
        if shares == 1 {
            return all_ranges(vectors, n * k, self.writer, |range| {
                let mut sum = BroadcastSum::new(width);
                range.into_iter().all(|vector| {
                    sum.reset();
                    let in_range = share(vector, 0, &mut sum);
                    if in_range {
                        // SAFETY: no two vectors share an element of their gradient.
                        unsafe { self.write_vector(own.offset(vector), &sum) };
                    }
                    in_range
                })
            });
        }
        let sums = threads::map(vectors * shares, cost, |task| {
            let _fence = FenceOnDrop(self.writer);
            let mut sum = BroadcastSum::new(width);
            share(task / shares, task % shares, &mut sum).then_some(sum)
        });
        let Some(mut sums) = sums.into_iter().collect::<Option<Vec<_>>>() else { return false };
        for (vector, shares) in sums.chunks_mut(shares).enumerate() {
            let (first, rest) = shares.split_first_mut().expect("at least one share");
            rest.iter().for_each(|more| first.add(more));
            // SAFETY: as above.
            unsafe { self.write_vector(own.offset(vector), first) };
        }
        true
    }

    /// The gradients of some of the rows that the vector meets at `start`, and what they add to its own.
    ///
    /// # Safety
    ///
    /// `start` is the offset of a vector of the space that [`backward`] was called with, `others` are the rows that it meets.
    /// Nothing else reads or writes the gradients of these.
    unsafe fn rows_of_vector(&self, start: Offsets, others: &Axes, range: Range<usize>, sum: &mut BroadcastSum) -> bool {
        let scratch = &mut Scratch::new(self.chunks, self.writer);
        let mut normalized = [Normalized::default(); GROUP];
        let compensated = size_of::<T::Compute>() == size_of::<f64>() && range.len() > GROUP;
        for mut group in self.chunks.groups(others, range, self.writer) {
            group.start = layout::sum(group.start, start);
            // SAFETY: the group is of rows of the space, from the vector's place on.
            let grads = unsafe { self.grads(&group) };
            if let Some(epsilon) = self.epsilon {
                let normalized = &mut normalized[..group.rows];
                // SAFETY: the group is of rows of the space.
                if unsafe { !self.normalized(&group, epsilon, scratch, normalized) } {
                    return false;
                }
                for (normalized, &g) in normalized.iter().zip(&grads) {
                    sum.along.add(g * normalized.cosine);
                }
                sum.scale = Some(normalized[0].scales[0]);
            }
            // SAFETY: the group is of rows of the space, whose gradients are ours alone.
            unsafe { self.write(&group, [None, self.rows.pass.dy], &grads, &normalized, &mut sum.elements, scratch) };
            if compensated {
                sum.fold();
            }
        }
        if compensated {
            sum.complete();
        }
        true
    }

    /// Writes the gradients of a group, where wanted, and adds to the sum of rows, where there is one.
    ///
    /// # Safety
    ///
    /// The group is of the space that [`backward`] was called with, and nothing else reads or writes the gradients that
    /// belong to it.
    unsafe fn write(
        &self,
        group: &Group,
        grads: [Option<*mut T>; 2],
        out_grads: &[f64; GROUP],
        normalized: &[Normalized; GROUP],
        sum: &mut [f64],
        scratch: &mut Scratch<T>,
    ) {
        let rows = GradRows {
            vectors: [self.rows.x, self.rows.y],
            grads,
            out_grads: &out_grads[..group.rows],
            normalized: self.epsilon.map(|_| &normalized[..group.rows]),
        };
        // SAFETY: the rows of the space are within the inputs and the gradients, which are ours alone where they belong to the
        // group.
        unsafe { self.chunks.write_gradients(rows, group, self.writer, sum, scratch) };
    }

    /// The gradient of a vector from what the other rows added.
    ///
    /// # Safety
    ///
    /// `at` is the offset of a vector of the space that [`backward`] was called with, and nothing else reads or writes its
    /// gradient.
    unsafe fn write_vector(&self, at: Offsets, sum: &BroadcastSum) {
        if let Some(dx) = self.rows.pass.dx {
            let (a, b) = match sum.scale {
                None => (1.0, None),
                Some(scale) => (scale.inverse(), Some(-sum.along.total() * scale.projected())),
            };
            // SAFETY: the vector is within the input and the gradient, ours alone.
            unsafe {
                self.chunks.write_sum(
                    self.rows.x,
                    dx,
                    at,
                    self.writer,
                    (a, &sum.elements),
                    b,
                    &mut Scratch::new(self.chunks, self.writer),
                )
            };
        }
    }
}

/// What the other rows add to the gradient of a vector.
#[derive(Default)]
struct BroadcastSum {
    /// `Σ g cos` of the rows: how much of the gradient lies along the vector.
    along: compensated::Compensated,
    /// Of the vector, where it is normalized.
    scale: Option<Scale>,
    elements: Vec<f64>,
    /// Totals of many rows and their rounding errors.
    total: Vec<f64>,
    errors: Vec<f64>,
}

impl BroadcastSum {
    fn new(len: usize) -> Self {
        BroadcastSum { elements: vec![0.0; len], ..Default::default() }
    }

    fn reset(&mut self) {
        self.along = Default::default();
        self.elements.fill(0.0);
        self.total.clear();
        self.errors.clear();
    }

    /// Adds the elements to the total.
    fn fold(&mut self) {
        self.total.resize(self.elements.len(), 0.0);
        self.errors.resize(self.elements.len(), 0.0);
        compensated::add(&mut self.total, &mut self.errors, &self.elements);
        self.elements.fill(0.0);
    }

    /// Adds the totals and their rounding errors.
    fn complete(&mut self) {
        for (to, (&total, &error)) in self.elements.iter_mut().zip(self.total.iter().zip(&self.errors)) {
            *to = compensated::total(total, error);
        }
    }

    fn add(&mut self, other: &BroadcastSum) {
        self.along.add(other.along.total());
        self.scale = self.scale.or(other.scale);
        self.elements.iter_mut().zip(&other.elements).for_each(|(to, &more)| *to += more);
    }
}
