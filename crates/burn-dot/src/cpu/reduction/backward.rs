//! The backward pass: the gradients of rows, and of a vector that meets many.

use alloc::{vec, vec::Vec};
use core::ops::Range;

use super::{
    super::{
        compensated,
        element::{Compute, Element},
        layout::{self, Axes, DX, OUT, OUT_INDEX, Offsets, Space},
        norms::Scale,
        threads,
    },
    Normalized, RowProduct, Rows, SavedRow, all_ranges,
    chunks::{Chunks, GROUP, GradRows, GradWriter, Group, Scratch},
};

/// Rows of a vector for each task that shares it, at least.
const ROWS_PER_SHARE: usize = 8;

/// What a backward pass reads beside the inputs, and writes.
#[derive(Clone, Copy)]
pub(in super::super) struct BackwardTensors<T, O> {
    /// The gradient of the output.
    pub grad: *const O,
    /// One for each element of the output, if they were saved.
    pub saved: Option<*const SavedRow>,
    /// The gradients of the inputs, where wanted.
    pub dx: Option<*mut T>,
    pub dy: Option<*mut T>,
}

/// The gradients that are wanted. False as in [`forward`].
///
/// # Safety
///
/// Every index of `space` is within the tensors and what was saved, nothing in it is empty, and nothing else reads or writes `dx`
/// and `dy`, which are initialized. These may be `x` and `y` themselves where `in_place` says so and each element of `x` and `y`
/// is met once.
pub(in super::super) unsafe fn backward<T, O>(
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
    let product = &RowProduct { rows, chunks, writer, epsilon };
    match n {
        // SAFETY: the rows of the range are the space's, which the caller says is within the tensors; no two rows share an
        // element of a gradient.
        1 => all_ranges(vectors, k, writer, |range| unsafe { product.pairs(&own, range) }),
        // SAFETY: both axes are the space's. Tasks that share a vector write gradients of their own rows and return sums; one writer stores
        // the vector's gradient.
        _ => unsafe { product.broadcast_vectors(&own, &others, k) },
    }
}

impl<T: Element, O: Element<Compute = T::Compute>> RowProduct<'_, T, BackwardTensors<T, O>> {
    /// As saved, or recomputed.
    ///
    /// # Safety
    ///
    /// The group is of the space that [`backward`] was called with.
    unsafe fn normalized(&self, group: &Group, epsilon: f64, scratch: &mut Scratch<T>, to: &mut [Normalized]) -> bool {
        let Some(saved) = self.rows.pass.saved else {
            // SAFETY: the group's rows are the space's, which is within the inputs.
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
            let _fence = self.writer.fence();
            let mut sum = BroadcastSum::new(width);
            share(task / shares, task % shares, &mut sum).then_some(sum)
        });
        let Some(mut sums) = sums.into_iter().collect::<Option<Vec<_>>>() else { return false };
        for (vector, shares) in sums.chunks_mut(shares).enumerate() {
            let (first, rest) = shares.split_first_mut().expect("at least one share");
            rest.iter().for_each(|more| first.add(more));
            // SAFETY: `map` has returned, so no task is left that reads the vector: this thread alone writes its gradient.
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
        // Sums of the other dtypes are in f64 already: it has digits to spare for them, and none for its own.
        let is_compensated = T::Compute::IS_F64 && range.len() > GROUP;
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
            if is_compensated {
                sum.fold();
            }
        }
        if is_compensated {
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
