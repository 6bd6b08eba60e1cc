//! A case on the device under test: forward and backward by Burn, whatever the ranks.

use burn::backend::{Dispatch, DispatchTensor};
use burn::prelude::*;
use burn::tensor::{
    DType, Gradients,
    kind::{Basic, Numeric},
};
use burn_dot::Dot;

use super::case::{Case, Holder, Numbers};
use crate::{
    arrive::Arrive,
    device::device,
    oracle::Array,
    run::{apply, out_rank},
};

/// What the layer gave: the output, and the gradient of each leaf that was asked for.
pub struct Given {
    pub out: TensorData,
    pub grads: [Option<TensorData>; 2],
}

impl Given {
    /// The same, with the largest number of one tensor off by 10,000 ε, or a twentieth; for each tensor that has one.
    pub fn each_with_a_fault(&self) -> impl Iterator<Item = Given> {
        let out = with_a_fault(&self.out).map(|out| Given { out, grads: self.grads.clone() });
        let grads = (0..2).filter_map(|side| {
            let mut grads = self.grads.clone();
            grads[side] = Some(with_a_fault(grads[side].as_ref()?)?);
            Some(Given { out: self.out.clone(), grads })
        });
        out.into_iter().chain(grads)
    }
}

fn with_a_fault(x: &TensorData) -> Option<TensorData> {
    let mut numbers: Vec<f64> = x.iter::<f64>().collect();
    let number = numbers.iter_mut().filter(|x| x.is_finite() && **x != 0.0).max_by(|a, b| a.abs().total_cmp(&b.abs()))?;
    // Towards zero: nothing overflows, no cosine is out of range.
    *number *= 1.0 - (1e4 * x.dtype().finfo().expect("a float").epsilon).min(0.05);
    Some(TensorData::new(numbers, x.shape().to_vec()).convert_dtype(x.dtype()))
}

/// Calls a function of one rank, `f::<D>(…)`.
macro_rules! with_rank {
    ($rank:expr, $f:ident $args:tt) => {
        match $rank {
            1 => $f::<1> $args,
            2 => $f::<2> $args,
            3 => $f::<3> $args,
            4 => $f::<4> $args,
            5 => $f::<5> $args,
            6 => $f::<6> $args,
            7 => $f::<7> $args,
            rank => panic!("no tensor of rank {rank} here"),
        }
    };
}

/// Runs a case of floats.
pub fn floats(case: &Case) -> Given {
    let device = if case.tracked == [false; 2] { device() } else { device().autodiff() };
    let input = |side: usize, x: &Numbers| {
        let (tracked, holder) = (case.tracked[side], case.holders[side]);
        with_rank!(x.shape.len(), float_input(x, case.dtype, tracked, holder, &device))
    };
    let (lhs_leaf, lhs) = input(0, &case.lhs);
    let (rhs_leaf, rhs) = if case.same { (lhs_leaf.clone(), lhs.clone()) } else { input(1, &case.rhs) };
    let cotangent = with_rank!(case.cotangent.shape.len(), tensor_of(&case.cotangent, case.out_dtype(), &device));
    let out = product::<Float>(case, lhs, rhs);
    let grads = (case.tracked != [false; 2]).then(|| {
        let arrived = Dispatch::float_arrive(out.clone(), cotangent);
        Tensor::<1>::from_dispatch(arrived).backward()
    });
    let grad = |side: usize, leaf: Option<DispatchTensor>, x: &Numbers| {
        let (grads, leaf) = (grads.as_ref().filter(|_| case.tracked[side])?, leaf.expect("a leaf is held"));
        Some(with_rank!(x.shape.len(), gradient(leaf, grads)))
    };
    Given {
        grads: [grad(0, lhs_leaf, &case.lhs), grad(1, rhs_leaf, &case.rhs)],
        out: with_rank!(case.cotangent.shape.len(), float_data(out)),
    }
}

/// Runs a case of integers.
pub fn integers(case: &Case) -> TensorData {
    let input = |x: &Numbers| with_rank!(x.shape.len(), int_input(x, case.dtype));
    let (lhs, rhs) = (input(&case.lhs), input(&case.rhs));
    with_rank!(case.cotangent.shape.len(), int_data(product::<Int>(case, lhs, rhs)))
}

/// The leaf that is held to ask for a gradient, and the input.
fn float_input<const D: usize>(
    x: &Numbers,
    dtype: DType,
    tracked: bool,
    holder: Holder,
    device: &Device,
) -> (Option<DispatchTensor>, DispatchTensor) {
    let memory = tensor::<D, Float>(&x.memory, dtype, device);
    let (leaf, input) = match (holder, tracked) {
        (Holder::Test, tracked) => {
            let view = x.view.of(memory);
            let leaf = if tracked { view.require_grad() } else { view };
            (Some(leaf.clone()), leaf)
        }
        (Holder::Graph, true) => {
            let leaf = memory.require_grad();
            // A product with 1 is a copy that nobody holds.
            (Some(leaf.clone()), x.view.of(leaf * 1.0))
        }
        (Holder::Graph, false) => (None, x.view.of(memory)),
    };
    (leaf.map(Tensor::into_dispatch), input.into_dispatch())
}

fn int_input<const D: usize>(x: &Numbers, dtype: DType) -> DispatchTensor {
    x.view.of(tensor::<D, Int>(&x.memory, dtype, &device())).into_dispatch()
}

fn tensor_of<const D: usize>(x: &Numbers, dtype: DType, device: &Device) -> DispatchTensor {
    x.view.of(tensor::<D, Float>(&x.memory, dtype, device)).into_dispatch()
}

fn tensor<const D: usize, K: Basic>(x: &Array, dtype: DType, device: &Device) -> Tensor<D, K> {
    Tensor::from_data(TensorData::new(x.data.clone(), x.shape.clone()), (device, dtype))
}

fn gradient<const D: usize>(leaf: DispatchTensor, grads: &Gradients) -> TensorData {
    Tensor::<D>::from_dispatch(leaf).grad(grads).expect("a tracked input has a gradient").into_data()
}

fn float_data<const D: usize>(x: DispatchTensor) -> TensorData {
    Tensor::<D>::from_dispatch(x).into_data()
}

fn int_data<const D: usize>(x: DispatchTensor) -> TensorData {
    Tensor::<D, Int>::from_dispatch(x).into_data()
}

/// The layer, by the ranks that [`Case::random`] makes.
fn product<K: Numeric>(case: &Case, lhs: DispatchTensor, rhs: DispatchTensor) -> DispatchTensor {
    let (l, r) = (&case.lhs.shape, &case.rhs.shape);
    let dot = case.config.init();
    macro_rules! table {
        ($(($l:literal $r:literal) $($o:literal)*;)*) => {
            match (l.len(), r.len(), out_rank(&case.config, l, r)) {
                $($(($l, $r, $o) => product_of_ranks::<$l, $r, $o, K>(&dot, lhs, rhs),)*)*
                ranks => panic!("no product of ranks {ranks:?} here"),
            }
        };
    }
    table! {
        (1 1) 1; (1 2) 1; (1 3) 2; (1 4) 3;
        (2 1) 1; (2 2) 1 2; (2 3) 1 2 3; (2 4) 2 3 4; (2 5) 3 4;
        (3 1) 2; (3 2) 1 2 3; (3 3) 1 2 3 4; (3 4) 1 2 3 4 5; (3 5) 2 3 4 5; (3 6) 3 4 5;
        (4 1) 3; (4 2) 2 3 4; (4 3) 1 2 3 4 5; (4 4) 2 3 4 5 6; (4 5) 2 3 4 5 6; (4 6) 3 4 5 6;
        (5 2) 3 4; (5 3) 2 3 4 5; (5 4) 2 3 4 5 6; (5 5) 2 3 4 5 6 7; (5 6) 3 4 5 6 7;
        (6 3) 3 4 5; (6 4) 3 4 5 6; (6 5) 3 4 5 6 7; (6 6) 3 4 5 6 7;
    }
}

fn product_of_ranks<const L: usize, const R: usize, const O: usize, K: Numeric>(
    dot: &Dot,
    lhs: DispatchTensor,
    rhs: DispatchTensor,
) -> DispatchTensor {
    apply::<L, R, O, K>(dot, Tensor::from_dispatch(lhs), Tensor::from_dispatch(rhs)).into_dispatch()
}
