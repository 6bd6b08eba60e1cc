//! The index space of a product: its axes, and how far a step along each goes in every tensor that takes part.

use core::ops::Range;

use smallvec::SmallVec;

use crate::plan::Plan;

/// The tensors that take part. `X` and `Y` are the inputs, in whichever order suits a kernel.
pub(super) const X: usize = 0;
pub(super) const Y: usize = 1;
/// The output, or its gradient.
pub(super) const OUT: usize = 2;
/// The gradients of the inputs.
pub(super) const DX: usize = 3;
pub(super) const DY: usize = 4;
/// One number for each vector of an input, such as its norm.
pub(super) const NX: usize = 5;
pub(super) const NY: usize = 6;
/// One number for each of the output, wherever that lies.
pub(super) const NOUT: usize = 7;
const TENSORS: usize = 8;

/// How far, in each tensor.
pub(super) type Steps = [isize; TENSORS];

/// One axis: its size, and a step along it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Axis {
    pub size: usize,
    pub step: Steps,
}

/// Axes that run together, the last one fastest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Axes(SmallVec<[Axis; 3]>);

/// `out[b, i, j] = Σₖ x[b, i, k] y[b, j, k]`.
#[derive(Clone, Debug)]
pub(super) struct Space {
    pub batch: Axes,
    pub i: Axes,
    pub j: Axes,
    pub k: Axes,
}

/// The strides of the tensors of a product; no strides for a tensor that does not take part.
#[derive(Clone, Copy, Default)]
pub(super) struct Strides<'a> {
    pub lhs: &'a [isize],
    pub rhs: &'a [isize],
    pub grad_lhs: &'a [isize],
    pub grad_rhs: &'a [isize],
    pub out: &'a [isize],
}

/// Whether the vectors of each input and the elements of the output can be counted by an `isize`, along with their terms. All counts that
/// kernels make of a space are parts of these products, so none of them wraps.
pub(super) fn is_countable(plan: &Plan) -> bool {
    let Plan { m, n, k, ref batch_shape, .. } = *plan;
    let countable = |sizes: [usize; 2]| {
        let count = batch_shape.iter().chain(&sizes).try_fold(1usize, |count, &size| count.checked_mul(size));
        count.is_some_and(|count| isize::try_from(count).is_ok())
    };
    countable([m, n]) && countable([m, k]) && countable([n, k])
}

impl Space {
    /// # Panics
    ///
    /// If the plan is not countable: see [`is_countable`].
    pub fn new(plan: &Plan, strides: Strides<'_>) -> Self {
        assert!(is_countable(plan), "a product too large to count: {plan:?}");
        let batch_dims = plan.batch_shape.len();
        let (i_dims, j_dims) =
            (plan.lhs_order.len() - batch_dims - plan.contracted, plan.rhs_order.len() - batch_dims - plan.contracted);
        let at = |strides: &[isize], axis: usize| strides.get(axis).copied().unwrap_or(0);
        // The vectors of an input, numbered in the order batch, free; and the numbers of the output.
        let vectors = |shape: &[usize], order: &[usize]| order.iter().map(|&axis| shape[axis] as isize).product::<isize>();
        let nx = |place: usize| vectors(&plan.lhs_shape, &plan.lhs_order[place + 1..batch_dims + i_dims]);
        let ny = |place: usize| vectors(&plan.rhs_shape, &plan.rhs_order[place + 1..batch_dims + j_dims]);
        let nout = |place: usize| plan.output[place + 1..].iter().product::<usize>() as isize;

        let batch = (0..batch_dims).map(|axis| {
            let size = plan.batch_shape[axis];
            // An axis of size 1 that is repeated is not walked along.
            let own = |step: isize, shape: &[usize]| if shape[axis] == size { step } else { 0 };
            let lhs = |step| own(step, &plan.lhs_shape);
            let rhs = |step| own(step, &plan.rhs_shape);
            let mut step = [0; TENSORS];
            step[X] = lhs(at(strides.lhs, axis));
            step[Y] = rhs(at(strides.rhs, axis));
            step[OUT] = at(strides.out, axis);
            step[DX] = lhs(at(strides.grad_lhs, axis));
            step[DY] = rhs(at(strides.grad_rhs, axis));
            step[NX] = lhs(nx(axis));
            step[NY] = rhs(ny(axis));
            step[NOUT] = nout(axis);
            Axis { size, step }
        });
        let i = (0..i_dims).map(|place| {
            let axis = plan.lhs_order[batch_dims + place];
            let mut step = [0; TENSORS];
            step[X] = at(strides.lhs, axis);
            step[OUT] = at(strides.out, batch_dims + place);
            step[DX] = at(strides.grad_lhs, axis);
            step[NX] = nx(batch_dims + place);
            step[NOUT] = nout(batch_dims + place);
            Axis { size: plan.lhs_shape[axis], step }
        });
        let j = (0..j_dims).map(|place| {
            let axis = plan.rhs_order[batch_dims + place];
            let mut step = [0; TENSORS];
            step[Y] = at(strides.rhs, axis);
            step[OUT] = at(strides.out, batch_dims + i_dims + place);
            step[DY] = at(strides.grad_rhs, axis);
            step[NY] = ny(batch_dims + place);
            step[NOUT] = nout(batch_dims + i_dims + place);
            Axis { size: plan.rhs_shape[axis], step }
        });
        let mut k: SmallVec<[Axis; 3]> = (0..plan.contracted)
            .map(|place| {
                let lhs = plan.lhs_order[batch_dims + i_dims + place];
                let rhs = plan.rhs_order[batch_dims + j_dims + place];
                let mut step = [0; TENSORS];
                step[X] = at(strides.lhs, lhs);
                step[Y] = at(strides.rhs, rhs);
                step[DX] = at(strides.grad_lhs, lhs);
                step[DY] = at(strides.grad_rhs, rhs);
                Axis { size: plan.lhs_shape[lhs], step }
            })
            .collect();
        // A sum may run in any order; this one lets axes that lie side by side become one.
        k.sort_by_key(|axis| core::cmp::Reverse(axis.step[X].abs()));
        Space { batch: Axes::new(batch), i: Axes::new(i), j: Axes::new(j), k: Axes::new(k) }
    }

    /// How many vectors an input has: as many as there are places for [`NX`] or [`NY`].
    pub fn vectors(&self, place: usize) -> usize {
        let free = if place == NX { &self.i } else { &self.j };
        self.batch.split_by(place).0.len() * free.len()
    }

    /// The same product with the inputs exchanged.
    pub fn swapped(self) -> Self {
        let swap = |axes: Axes| {
            Axes(
                axes.0
                    .into_iter()
                    .map(|Axis { size, step: [x, y, out, dx, dy, nx, ny, nout] }| Axis {
                        size,
                        step: [y, x, out, dy, dx, ny, nx, nout],
                    })
                    .collect(),
            )
        };
        Space { batch: swap(self.batch), i: swap(self.j), j: swap(self.i), k: swap(self.k) }
    }
}

impl Axes {
    /// Axes without those of size 1, and with each two that step as one made one.
    pub fn new(axes: impl IntoIterator<Item = Axis>) -> Self {
        let mut merged: SmallVec<[Axis; 3]> = SmallVec::new();
        for axis in axes {
            match merged.last_mut() {
                _ if axis.size == 1 => {}
                Some(last) if (0..TENSORS).all(|t| last.step[t] == axis.step[t] * axis.size as isize) => {
                    *last = Axis { size: last.size * axis.size, step: axis.step };
                }
                _ => merged.push(axis),
            }
        }
        Axes(merged)
    }

    /// How many indices there are.
    pub fn len(&self) -> usize {
        self.0.iter().map(|axis| axis.size).product()
    }

    /// The stride of the last axis, if a tensor has one stride for all indices; 1 where there is a single index.
    pub fn stride_of(&self, tensor: usize) -> Option<isize> {
        let Some((last, outer)) = self.0.split_last() else { return Some(1) };
        let mut next = last.step[tensor] * last.size as isize;
        let regular = outer.iter().rev().all(|axis| {
            let expected = next;
            next *= axis.size as isize;
            axis.step[tensor] == expected
        });
        regular.then_some(last.step[tensor])
    }

    /// Those axes along which a tensor is walked, and the others.
    pub fn split_by(&self, tensor: usize) -> (Axes, Axes) {
        let (with, without) = self.0.iter().copied().partition(|axis: &Axis| axis.step[tensor] != 0);
        (Axes(with), Axes(without))
    }

    /// The runs along the last axis that together make these indices: for each, how many came before it, its length, and where it
    /// begins.
    pub fn runs(&self, indices: Range<usize>) -> impl Iterator<Item = (usize, usize, Steps)> {
        let (outer, inner) = self.inner();
        let mut next = indices.start;
        core::iter::from_fn(move || {
            let (index, within) = (next, next % inner.size);
            let len = (inner.size - within).min(indices.end - next);
            next += len;
            (len > 0).then(|| (index - indices.start, len, advance(outer.offset(index / inner.size), &inner, within)))
        })
    }

    /// These axes, then others.
    pub fn followed_by(&self, others: &Axes) -> Axes {
        Axes(self.0.iter().chain(&others.0).copied().collect())
    }

    /// All but the last axis, and the last; a size of 1 where there is none.
    pub fn inner(&self) -> (Axes, Axis) {
        match self.0.split_last() {
            Some((last, rest)) => (Axes(rest.into()), *last),
            None => (Axes(SmallVec::new()), Axis { size: 1, step: [0; TENSORS] }),
        }
    }

    /// Where the index of this number lies, from the first.
    #[inline(always)]
    pub fn offset(&self, mut index: usize) -> Steps {
        let mut offset = [0; TENSORS];
        let mut add = |at: usize, axis: &Axis| (0..TENSORS).for_each(|t| offset[t] += at as isize * axis.step[t]);
        if let Some((first, rest)) = self.0.split_first() {
            for axis in rest.iter().rev() {
                add(index % axis.size, axis);
                index /= axis.size;
            }
            add(index, first); // Most often the only one, and it needs no division.
        }
        offset
    }

    /// Where these indices lie, one after the other.
    #[inline(always)]
    pub fn walk(&self, indices: Range<usize>) -> Walk<'_> {
        // Most often there is one axis, and the next index is a step away.
        let step = match self.0[..] {
            [axis] => Some(axis.step),
            _ => None,
        };
        Walk { axes: self, step, at: self.offset(indices.start), indices }
    }
}

/// See [`Axes::walk`]. A type, for `next` to be inlined into kernels: an adaptor's is not.
pub(super) struct Walk<'a> {
    axes: &'a Axes,
    step: Option<Steps>,
    at: Steps,
    indices: Range<usize>,
}

impl Iterator for Walk<'_> {
    type Item = Steps;

    #[inline(always)]
    fn next(&mut self) -> Option<Steps> {
        if self.indices.start >= self.indices.end {
            return None;
        }
        let here = self.at;
        self.indices.start += 1;
        match self.step {
            Some(step) => self.at = sum(here, step),
            None if self.indices.start < self.indices.end => self.at = self.axes.offset(self.indices.start),
            None => {}
        }
        Some(here)
    }
}

/// Where a tensor lies after some steps along an axis.
#[inline(always)]
pub(super) fn advance(mut at: Steps, axis: &Axis, steps: usize) -> Steps {
    // Loops, for the same reason as above.
    let mut t = 0;
    while t < TENSORS {
        at[t] += steps as isize * axis.step[t];
        t += 1;
    }
    at
}

#[inline(always)]
pub(super) fn sum(mut a: Steps, b: Steps) -> Steps {
    let mut t = 0;
    while t < TENSORS {
        a[t] += b[t];
        t += 1;
    }
    a
}
