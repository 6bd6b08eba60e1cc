//! Products on remote devices, each sent whole to a server that has this crate too.
//!
//! A remote device sends every operation to its server, and a composed product is dozens of them. Burn lets an extension send an operation
//! of its own, by a name: `client` writes products so, `server` computes them by the server's own [`DotOps`](crate::ops::DotOps), kernels
//! included. Here is what both must agree on.
//!
//! An operation carries tensors and scalars. Shapes and dtypes come with the tensors; the scalars are the axes and the epsilon. Both sides
//! plan the product from them.

mod client;
#[cfg(feature = "server")]
mod server;

use alloc::{format, string::String, vec::Vec};

use burn_core::backend::ir::ScalarIr;

use crate::{axes::Axes, plan::Plan};

pub use client::{ServerError, use_server_kernels};
#[cfg(feature = "server")]
pub use server::serve;

/// The names of the operations. The number changes with what they carry: a server of another version has none of these.
mod names {
    /// Gives one element, and shows that a server has all the others.
    pub const READY: &str = "burn_dot/1/ready";
    /// lhs, rhs → out
    pub const FLOAT_DOT: &str = "burn_dot/1/float_dot";
    /// lhs, rhs → out, saved
    pub const FLOAT_DOT_TRACKED: &str = "burn_dot/1/float_dot_tracked";
    /// lhs, rhs, the gradient of out, and saved if there is any → the gradient of lhs
    pub const FLOAT_DOT_GRAD_LHS: &str = "burn_dot/1/float_dot_grad_lhs";
    /// As before → the gradient of rhs
    pub const FLOAT_DOT_GRAD_RHS: &str = "burn_dot/1/float_dot_grad_rhs";
    /// As before → both gradients
    pub const FLOAT_DOT_GRADS: &str = "burn_dot/1/float_dot_grads";
    /// lhs, rhs → out
    pub const INT_DOT: &str = "burn_dot/1/int_dot";
    /// x → x
    pub const IN_MEMORY_ORDER: &str = "burn_dot/1/in_memory_order";
}

/// What the tensors of a product do not tell: the epsilon, or `false` for a plain product; how many axes are batch; the contracted pairs.
fn write(plan: &Plan, normalize: Option<f64>) -> Vec<ScalarIr> {
    let index = |index: usize| ScalarIr::UInt(index as u64);
    let [lhs, rhs] = [&plan.lhs, &plan.rhs].map(|input| &input.order[input.free.end..]);
    let pairs = lhs.iter().zip(rhs);
    let epsilon = normalize.map_or(ScalarIr::Bool(false), ScalarIr::Float);
    [epsilon, index(plan.batch_shape.len())]
        .into_iter()
        .chain(pairs.flat_map(|(&lhs, &rhs)| [index(lhs), index(rhs)]))
        .collect()
}

/// The plan of two shapes, and the epsilon, as [`write`] wrote them; or why there is none.
#[cfg_attr(not(feature = "server"), cfg(test))]
fn read(scalars: &[ScalarIr], lhs: &[usize], rhs: &[usize]) -> Result<(Plan, Option<f64>), String> {
    let malformed = || format!("{scalars:?} is not a product");
    let [epsilon, axes @ ..] = scalars else { return Err(malformed()) };
    let normalize = match epsilon {
        ScalarIr::Bool(false) => None,
        ScalarIr::Float(epsilon) => Some(*epsilon),
        _ => return Err(malformed()),
    };
    let index = |scalar: &ScalarIr| match scalar {
        ScalarIr::UInt(index) => usize::try_from(*index).ok(),
        _ => None,
    };
    let axes: Option<Vec<usize>> = axes.iter().map(index).collect();
    let axes = axes.ok_or_else(malformed)?;
    let (&batch_dims, pairs) = axes.split_first().ok_or_else(malformed)?;
    let (pairs, rest) = pairs.as_chunks();
    if !rest.is_empty() {
        return Err(malformed());
    }
    let pairs: Vec<(usize, usize)> = pairs.iter().map(|&[lhs, rhs]| (lhs, rhs)).collect();
    // Whether a batch of 1 may be repeated was asked where the layer checked its inputs.
    let plan = Plan::new(&Axes::from(pairs), batch_dims, true, lhs, rhs).map_err(|error| format!("{error}"))?;
    Ok((plan, normalize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_is_read_as_it_was_written() {
        let cases: &[(Axes, usize, &[usize], &[usize])] = &[
            (1.into(), 1, &[5, 8], &[5, 8]),
            ((2, 1).into(), 1, &[5, 3, 8], &[5, 8, 4]),
            ((-1, 1).into(), 1, &[5, 3, 8], &[5, 8, 4]),
            (vec![(2, 1), (1, 2)].into(), 1, &[5, 3, 8], &[5, 8, 3]),
            (3.into(), 2, &[2, 3, 4, 5], &[2, 3, 6, 5]),
            (1.into(), 0, &[5, 8], &[6, 8]),
            (1.into(), 1, &[1, 8], &[5, 8]),
            (Vec::<(isize, isize)>::new().into(), 1, &[5, 2], &[5, 3]),
            (1.into(), 1, &[5, 0], &[5, 0]),
        ];
        for (axes, batch_dims, lhs, rhs) in cases {
            for normalize in [None, Some(1e-6), Some(0.0)] {
                let plan = Plan::new(axes, *batch_dims, true, lhs, rhs).unwrap();
                let read = read(&write(&plan, normalize), lhs, rhs);
                assert_eq!(read, Ok((plan, normalize)), "{axes:?}, {batch_dims} batch axes, {lhs:?}, {rhs:?}");
            }
        }
    }

    #[test]
    fn what_is_no_product_is_said_to_be_none() {
        use ScalarIr::{Bool, Float, Int, UInt};
        let plain = Bool(false);
        let malformed: &[&[ScalarIr]] = &[
            &[],
            &[plain],
            &[Bool(true), UInt(1), UInt(1), UInt(1)],
            &[UInt(0), UInt(1), UInt(1), UInt(1)],
            &[plain, UInt(1), UInt(1)],
            &[plain, UInt(1), Int(1), UInt(1)],
            &[plain, UInt(1), UInt(1), UInt(9)],
            &[plain, UInt(u64::MAX), UInt(1), UInt(1)],
            &[Float(1e-6), UInt(3), UInt(1), UInt(1)],
        ];
        for scalars in malformed {
            assert!(read(scalars, &[5, 8], &[5, 8]).is_err(), "{scalars:?}");
        }
        assert!(read(&[plain, UInt(1), UInt(1), UInt(1)], &[5, 8], &[5, 9]).is_err(), "sizes that differ");
    }
}
