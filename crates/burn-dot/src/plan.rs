//! Axes and shapes become one matrix product: batch, m, k, n, the order of the axes, the output shape.
//!
//! A plan is a pure value. It knows no tensors, so it answers [`DotConfig::output_shape`](crate::DotConfig::output_shape)
//! as well as the forward pass, and every error about axes and shapes is born here.
//!
//! ```text
//! lhs  batch… · free… · contracted…   →   (batch, m, k)  ┐
//!                                                        ├→  (batch, m, n)  →  batch… · lhs free… · rhs free…
//! rhs  batch… · free… · contracted…   →   (batch, n, k)  ┘
//! ```

use core::ops::{Deref, Range};

use burn_core::tensor::{FloatDType, Shape};
use smallvec::SmallVec;

use crate::{
    axes::Axes,
    error::{Axis, DotError, Operand, Shapes},
};

/// Indices of axes. As many as most tensors have are kept inline: a call on short rows takes less time than an allocation.
pub(crate) type AxisList = SmallVec<[usize; 8]>;

/// A size of an axis, known or not.
pub(crate) trait Size: Copy {
    fn known(self) -> Option<usize>;
}

impl Size for usize {
    fn known(self) -> Option<usize> {
        Some(self)
    }
}

impl Size for Option<usize> {
    fn known(self) -> Option<usize> {
        self
    }
}

/// Which axes meet: the axes resolved against two shapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pairing<'a, S> {
    /// Sizes of the shared leading axes in the output.
    batch: SmallVec<[S; 8]>,
    lhs: Roles<'a, S>,
    rhs: Roles<'a, S>,
}

/// What each axis of one input is for. The batch axes are the leading ones.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Roles<'a, S> {
    sizes: &'a [S],
    batch_dims: usize,
    /// The axes that are neither batch nor contracted.
    free: AxisList,
    contracted: SmallVec<[Axis; 4]>,
}

impl<'a, S: Size> Pairing<'a, S> {
    /// Resolves `axes` and checks every size that is known.
    pub(crate) fn new(
        axes: &Axes,
        batch_dims: usize,
        broadcast_batch: bool,
        lhs: &'a [S],
        rhs: &'a [S],
    ) -> Result<Self, DotError> {
        // Only for an error.
        let sizes = |sizes: &[S]| sizes.iter().map(|size| size.known()).collect();
        let shapes = || Shapes { lhs: sizes(lhs), rhs: sizes(rhs) };
        let single;
        let pairs = match axes {
            Axes::Pairs(pairs) => &pairs[..],
            &Axes::Pair(lhs, rhs) => {
                single = [(lhs, rhs)];
                &single
            }
            &Axes::Both(axis) => {
                single = [(axis, axis)];
                &single
            }
        };
        let lhs_axes = resolve(Operand::Lhs, pairs.iter().map(|pair| pair.0), batch_dims, lhs.len(), shapes)?;
        let rhs_axes = resolve(Operand::Rhs, pairs.iter().map(|pair| pair.1), batch_dims, rhs.len(), shapes)?;

        for (&lhs_axis, &rhs_axis) in lhs_axes.iter().zip(&rhs_axes) {
            if let (Some(lhs_size), Some(rhs_size)) = (lhs[lhs_axis.index].known(), rhs[rhs_axis.index].known())
                && lhs_size != rhs_size
            {
                let candidate = if pairs.len() == 1 { only_agreeing_pair(batch_dims, lhs, rhs) } else { None };
                return Err(DotError::SizeMismatch { lhs_axis, lhs_size, rhs_axis, rhs_size, candidate, shapes: shapes() });
            }
        }

        let mut batch = SmallVec::new();
        for axis in 0..batch_dims {
            let (l, r) = (lhs[axis], rhs[axis]);
            batch.push(match (l.known(), r.known()) {
                (Some(lhs), Some(rhs)) if lhs == rhs => l,
                (Some(1), _) if broadcast_batch => r,
                (_, Some(1)) if broadcast_batch => l,
                (Some(lhs_size), Some(rhs_size)) => {
                    return Err(DotError::BatchMismatch { axis, lhs_size, rhs_size, shapes: shapes() });
                }
                (_, None) => l,
                (None, _) => r,
            });
        }
        Ok(Pairing { batch, lhs: Roles::new(lhs, batch_dims, lhs_axes), rhs: Roles::new(rhs, batch_dims, rhs_axes) })
    }

    /// Batch, then the free axes of lhs, then those of rhs; `None` where a size is unknown.
    pub(crate) fn output_shape(&self) -> impl Iterator<Item = Option<usize>> {
        // Nothing free: Keras keeps (batch, 1). Without a batch the result is a number, which Burn holds as [1].
        let alone = self.lhs.free.is_empty() && self.rhs.free.is_empty() && self.batch.len() <= 1;
        let sizes = self.batch.iter().copied().chain(self.lhs.free_sizes()).chain(self.rhs.free_sizes());
        sizes.map(Size::known).chain(alone.then_some(Some(1)))
    }
}

impl<'a, S: Copy> Roles<'a, S> {
    fn new(sizes: &'a [S], batch_dims: usize, contracted: SmallVec<[Axis; 4]>) -> Self {
        let is_free = |index: &usize| contracted.iter().all(|axis| axis.index != *index);
        let free = (batch_dims..sizes.len()).filter(is_free).collect();
        Roles { sizes, batch_dims, free, contracted }
    }

    fn free_sizes(&self) -> impl Iterator<Item = S> {
        self.free.iter().map(|&axis| self.sizes[axis])
    }

    fn contracted_sizes(&self) -> impl Iterator<Item = S> {
        self.contracted.iter().map(|axis| self.sizes[axis.index])
    }

    fn input(&self, shape: &[usize]) -> Input {
        let contracted = self.contracted.iter().map(|axis| axis.index);
        Input {
            shape: shape.into(),
            order: (0..self.batch_dims).chain(self.free.iter().copied()).chain(contracted).collect(),
            free: self.batch_dims..self.batch_dims + self.free.len(),
        }
    }
}

/// Resolves the axes of one input.
fn resolve(
    operand: Operand,
    axes: impl Iterator<Item = isize>,
    batch_dims: usize,
    rank: usize,
    shapes: impl Fn() -> Shapes,
) -> Result<SmallVec<[Axis; 4]>, DotError> {
    if rank <= batch_dims {
        return Err(DotError::RankTooSmall { operand, batch_dims, shapes: shapes() });
    }
    let mut resolved: SmallVec<[Axis; 4]> = SmallVec::new();
    for written in axes {
        let from_front = if written < 0 { written.saturating_add_unsigned(rank) } else { written };
        let Some(index) = usize::try_from(from_front).ok().filter(|&index| index < rank) else {
            return Err(DotError::AxisOutOfRange { operand, axis: written, shapes: shapes() });
        };
        let axis = Axis { written, index };
        if index < batch_dims {
            return Err(DotError::BatchAxis { operand, axis, batch_dims, shapes: shapes() });
        }
        if let Some(&first) = resolved.iter().find(|earlier| earlier.index == index) {
            return Err(DotError::DuplicateAxis { operand, first, again: axis, shapes: shapes() });
        }
        resolved.push(axis);
    }
    Ok(resolved)
}

/// The one pair of axes whose sizes agree, as a suggestion; `None` when there are several or none.
fn only_agreeing_pair<S: Size>(batch_dims: usize, lhs: &[S], rhs: &[S]) -> Option<(usize, usize)> {
    let mut agreeing = (batch_dims..lhs.len())
        .flat_map(|l| (batch_dims..rhs.len()).map(move |r| (l, r)))
        .filter(|&(l, r)| lhs[l].known().is_some() && lhs[l].known() == rhs[r].known());
    let first = agreeing.next();
    if agreeing.next().is_none() { first } else { None }
}

/// How a float product is to be computed.
#[derive(Clone, Copy, Debug)]
pub struct FloatOptions {
    /// The epsilon on the norm, where the inputs are to be normalized.
    pub normalize: Option<f64>,
    /// Dtype of the output; that of the inputs where not given.
    pub output: Option<FloatDType>,
}

impl FloatOptions {
    /// The dtype to multiply and accumulate in: at least f32, and at least as wide as both ends.
    pub(crate) fn accumulator(&self, input: FloatDType) -> FloatDType {
        let f64 = input == FloatDType::F64 || self.output == Some(FloatDType::F64);
        if f64 { FloatDType::F64 } else { FloatDType::F32 }
    }
}

/// One product with every size known, ready to run.
///
/// [`Plan::new`] alone makes one, and its sizes can only be read. So kernels may rest on what was checked there: an `isize`
/// counts the elements of each input, its batch broadcast, and the bytes of the output in f64, also if sizes of 0 are left out.
/// No product of sizes of one of them wraps, then, in whatever order they are multiplied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan(Sizes);

impl Deref for Plan {
    type Target = Sizes;

    fn deref(&self) -> &Sizes {
        &self.0
    }
}

/// Sizes and axes of a product; checked, if they are those of a [`Plan`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Sizes of the batch axes in the output.
    pub batch_shape: Shape,
    /// Product of `batch_shape`.
    pub batch: usize,
    /// Product of lhs's free sizes.
    pub m: usize,
    /// Product of the contracted sizes.
    pub k: usize,
    /// Product of rhs's free sizes.
    pub n: usize,
    /// The first input.
    pub lhs: Input,
    /// The second input.
    pub rhs: Input,
    /// Shape of the output.
    pub output: Shape,
}

/// One input of a product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// Its shape.
    pub shape: Shape,
    /// Its axes in the order batch, free, contracted.
    pub order: AxisList,
    /// Which places of the order are free axes: before them are the batch axes, behind them the contracted ones.
    pub free: Range<usize>,
}

impl Input {
    /// Sizes of the batch axes, which are 1 where the other input has more.
    pub fn batch_shape(&self) -> &[usize] {
        &self.shape[..self.free.start]
    }
}

/// Of which inputs the gradient is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(any(feature = "flex", feature = "_cube")), allow(dead_code, reason = "only kernels compute both at once"))]
pub struct Wanted {
    /// Of lhs.
    pub lhs: bool,
    /// Of rhs.
    pub rhs: bool,
}

#[cfg_attr(not(any(feature = "flex", feature = "_cube")), allow(dead_code, reason = "only kernels compute both at once"))]
impl Wanted {
    pub(crate) const BOTH: Wanted = Wanted { lhs: true, rhs: true };

    pub(crate) fn only(of: Operand) -> Self {
        Wanted { lhs: of == Operand::Lhs, rhs: of == Operand::Rhs }
    }
}

impl Plan {
    /// Plans the product of two shapes.
    pub(crate) fn new(
        axes: &Axes,
        batch_dims: usize,
        broadcast_batch: bool,
        lhs: &[usize],
        rhs: &[usize],
    ) -> Result<Self, DotError> {
        let pairing = Pairing::new(axes, batch_dims, broadcast_batch, lhs, rhs)?;
        let output: Shape = pairing.output_shape().flatten().collect();
        let batch_shape: Shape = pairing.batch.as_slice().into();
        // A broadcast input takes no memory, so an input may be larger than memory, but not larger than can be counted. The output has
        // to be stored. No product below can overflow then.
        for (operand, sizes) in [(Operand::Lhs, lhs), (Operand::Rhs, rhs)] {
            let shape = batch_shape.iter().chain(&sizes[batch_dims..]);
            if !is_countable(shape.clone(), isize::MAX as usize) {
                let shape = shape.copied().collect();
                return Err(DotError::InputTooLarge { operand, shape, shapes: Shapes::known(lhs, rhs) });
            }
        }
        if !is_countable(output.iter(), isize::MAX as usize / size_of::<f64>()) {
            return Err(DotError::OutputTooLarge { output: output.to_vec(), shapes: Shapes::known(lhs, rhs) });
        }
        let Pairing { lhs: lhs_roles, rhs: rhs_roles, .. } = &pairing;

        Ok(Plan(Sizes {
            batch: batch_shape.iter().product(),
            m: lhs_roles.free_sizes().product(),
            k: lhs_roles.contracted_sizes().product(),
            n: rhs_roles.free_sizes().product(),
            lhs: lhs_roles.input(lhs),
            rhs: rhs_roles.input(rhs),
            batch_shape,
            output,
        }))
    }

    /// Whether a batch of 1 of either input meets a larger one.
    #[cfg(feature = "_cube")]
    pub(crate) fn is_broadcast(&self) -> bool {
        [&self.lhs, &self.rhs].into_iter().any(|input| *input.batch_shape() != self.batch_shape[..])
    }

    /// Whether the output holds nothing, or nothing but zeros: no arithmetic is needed.
    pub(crate) fn is_trivial(&self) -> bool {
        self.k == 0 || self.output.contains(&0)
    }
}

/// Whether the sizes multiply to at most `most`, in any order and number: sizes of 0 are left out, so that no partial product is larger.
fn is_countable<'a>(shape: impl Iterator<Item = &'a usize>, most: usize) -> bool {
    let count = shape.filter(|&&size| size != 0).try_fold(1usize, |count, &size| count.checked_mul(size));
    count.is_some_and(|count| count <= most)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two of them multiply to one more than `usize` can hold.
    const HALF: usize = 1 << (usize::BITS / 2);

    fn plan(axes: impl Into<Axes>, batch_dims: usize, lhs: &[usize], rhs: &[usize]) -> Result<Plan, DotError> {
        Plan::new(&axes.into(), batch_dims, true, lhs, rhs)
    }

    fn too_large(operand: Operand, shape: &[usize], lhs: &[usize], rhs: &[usize]) -> Result<Plan, DotError> {
        Err(DotError::InputTooLarge { operand, shape: shape.to_vec(), shapes: Shapes::known(lhs, rhs) })
    }

    #[test]
    fn an_input_with_more_elements_than_isize_counts_is_refused() {
        let all = [(1, 1), (2, 2), (3, 3), (4, 4)];
        let contracted = [1, HALF, HALF, HALF, HALF];
        assert_eq!(plan(all, 1, &contracted, &contracted), too_large(Operand::Lhs, &contracted, &contracted, &contracted));
        // One more than isize holds, and still a number in usize.
        let (lhs, rhs) = ([1, HALF, HALF / 2], [1, HALF / 2]);
        assert_eq!(plan((2, 1), 1, &lhs, &rhs), too_large(Operand::Lhs, &lhs, &lhs, &rhs));
        assert_eq!(plan((1, 2), 1, &rhs, &lhs), too_large(Operand::Rhs, &lhs, &rhs, &lhs));
    }

    #[test]
    fn an_input_that_overflows_once_its_batch_is_broadcast_is_refused() {
        let (lhs, rhs) = ([HALF / 2, 1, 2], [1, HALF, 2]);
        assert_eq!(plan(2, 1, &lhs, &rhs), too_large(Operand::Rhs, &[HALF / 2, HALF, 2], &lhs, &rhs));
    }

    #[test]
    fn an_empty_input_is_counted_by_its_other_sizes() {
        let empty = [0, HALF, HALF, HALF];
        assert_eq!(plan(3, 1, &empty, &empty), too_large(Operand::Lhs, &empty, &empty, &empty));
        let (lhs, rhs) = ([0, HALF, 1], [0, HALF, 1]);
        let output = vec![0, HALF, HALF];
        assert_eq!(plan(2, 1, &lhs, &rhs), Err(DotError::OutputTooLarge { output, shapes: Shapes::known(&lhs, &rhs) }));
    }

    #[test]
    fn an_input_larger_than_memory_has_a_plan_with_exact_products() {
        let large = [2, HALF, HALF / 8];
        let plan = plan([(1, 1), (2, 2)], 1, &large, &large).unwrap();
        assert_eq!((plan.batch, plan.m, plan.k, plan.n), (2, 1, HALF * (HALF / 8), 1));
    }
    /// Kernels multiply them without a check, also where another one of them is 0.
    #[test]
    fn no_two_sizes_that_are_planned_multiply_to_more_than_isize_counts() {
        let sizes = [0, 1, 3, HALF / 4, HALF, HALF * (HALF / 8)];
        let shapes: Vec<[usize; 3]> =
            sizes.iter().flat_map(|&a| sizes.iter().flat_map(move |&b| sizes.map(|c| [a, b, c]))).collect();
        let plans = |lhs: &[usize; 3]| shapes.iter().filter_map(|rhs| plan(2, 1, lhs, rhs).ok()).collect::<Vec<_>>();
        for plan in shapes.iter().flat_map(plans) {
            let Sizes { batch, m, k, n, .. } = *plan;
            for (a, b) in [(batch, m), (batch, k), (batch, n), (m, k), (n, k), (m, n)] {
                assert!(a.checked_mul(b).is_some_and(|count| isize::try_from(count).is_ok()), "{plan:?}");
            }
            assert!(isize::try_from(batch.max(1) * m.max(1) * n.max(1)).is_ok(), "{plan:?}");
        }
    }
}
