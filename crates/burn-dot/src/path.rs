//! Which kernel a product takes: decided from the plan and the strides of its inputs alone.

use crate::{
    error::Operand,
    plan::{Input, Plan},
};

/// The kernel of a product. What one saves for the backward pass, the same alone can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Dot products row by row (dot, gemv): this operand has a single vector for each batch index.
    Reduction { vector: Operand },
    /// Matrix products.
    Gemm,
}

/// A pass through the layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    Forward,
    Backward,
}

impl Path {
    /// A reduction, where an operand has a single vector for each batch index and the vectors of the other are not perpendicular to memory:
    /// a matrix is read better by its rows there. Prefers an operand whose counterpart has the whole batch. With `allow_broadcast` also takes
    /// one whose counterpart is broadcast; only forward passes allow that, as its gradient would be a sum over batch and vectors at once.
    ///
    /// Strides may turn a reduction into a matrix product, but never exchange lhs for rhs. So backward finds what forward saved under the same
    /// operand. Where strides are not known, no vector is taken to be perpendicular.
    pub fn choose(plan: &Plan, strides: Option<[&[isize]; 2]>, allow_broadcast: bool) -> Path {
        let find = |broadcast: bool| {
            [Operand::Lhs, Operand::Rhs].into_iter().find(|&vector| {
                let [lhs, rhs] = strides.unwrap_or_default();
                let (single, other, strides) = match vector {
                    Operand::Lhs => (plan.m == 1, &plan.rhs, rhs),
                    Operand::Rhs => (plan.n == 1, &plan.lhs, lhs),
                };
                let is_broadcast = *other.batch_shape() != plan.batch_shape[..];
                single && is_broadcast == broadcast && !is_perpendicular(other, strides)
            })
        };
        let vector = find(false).or_else(|| if allow_broadcast { find(true) } else { None });
        vector.map_or(Path::Gemm, |vector| Path::Reduction { vector })
    }
}

/// Whether neighbours in memory belong to different vectors.
fn is_perpendicular(input: &Input, strides: &[isize]) -> bool {
    let contiguous = |axes: &[usize]| axes.iter().any(|&axis| input.shape[axis] > 1 && strides.get(axis) == Some(&1));
    contiguous(&input.order[input.free.clone()]) && !contiguous(&input.order[input.free.end..])
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use crate::axes::Axes;

    /// Strides of contiguous tensors, with two axes exchanged in memory where asked.
    fn strides(shape: &[usize], exchanged: Option<(usize, usize)>) -> Vec<isize> {
        let mut order: Vec<usize> = (0..shape.len()).collect();
        if let Some((a, b)) = exchanged {
            order.swap(a, b);
        }
        let mut strides = alloc::vec![0; shape.len()];
        let mut next = 1;
        for &axis in order.iter().rev() {
            strides[axis] = next;
            next *= shape[axis] as isize;
        }
        strides
    }

    #[test]
    fn rows_and_vectors_are_reductions_and_all_else_is_gemm() {
        use Operand::{Lhs, Rhs};
        use Pass::{Backward, Forward};
        let reduction = |vector: Operand| Path::Reduction { vector };
        type Case = (&'static [usize], &'static [usize], (isize, isize), Option<(usize, usize)>, Pass, Path);
        let cases: &[Case] = &[
            // Rows with rows.
            (&[5, 8], &[5, 8], (1, 1), None, Forward, reduction(Lhs)),
            (&[5, 8], &[5, 8], (1, 1), None, Backward, reduction(Lhs)),
            // A vector with a matrix, on either side.
            (&[5, 8], &[5, 3, 8], (1, 2), None, Forward, reduction(Lhs)),
            (&[5, 3, 8], &[5, 8], (2, 1), None, Forward, reduction(Rhs)),
            // The vectors of the matrix are perpendicular to memory.
            (&[5, 8], &[5, 8, 3], (1, 1), None, Forward, Path::Gemm),
            (&[5, 8], &[5, 3, 8], (1, 2), Some((1, 2)), Forward, Path::Gemm),
            // Several vectors on both sides.
            (&[5, 4, 8], &[5, 3, 8], (2, 2), None, Forward, Path::Gemm),
            // A matrix that is broadcast along the batch.
            (&[5, 8], &[1, 3, 8], (1, 2), None, Forward, reduction(Lhs)),
            (&[5, 8], &[1, 3, 8], (1, 2), None, Backward, Path::Gemm),
            // A vector that is broadcast along the batch.
            (&[1, 8], &[5, 3, 8], (1, 2), None, Backward, reduction(Lhs)),
            // One of two single vectors: the one whose counterpart is not broadcast.
            (&[1, 8], &[5, 8], (1, 1), None, Forward, reduction(Lhs)),
            (&[5, 8], &[1, 8], (1, 1), None, Forward, reduction(Rhs)),
        ];
        for &(lhs, rhs, axes, exchanged, pass, expected) in cases {
            let plan = Plan::new(&Axes::from(axes), 1, true, lhs, rhs).unwrap();
            let (lhs_strides, rhs_strides) = (strides(lhs, None), strides(rhs, exchanged));
            let given = Path::choose(&plan, Some([&lhs_strides, &rhs_strides]), pass == Forward);
            assert_eq!(given, expected, "{lhs:?} · {rhs:?} along {axes:?}, {exchanged:?}, {pass:?}");
        }
    }
}
