//! The layer under test on arrays of any rank: the bridge between tables of numbers and Burn's ranked tensors.

use burn::prelude::*;
use burn::tensor::DType;
use burn_dot::{Axes, Dot, DotConfig};

use crate::{
    device::{backend, device, is_cubecl},
    oracle::{self, Answer, Array, Product},
};

/// The layer by the path that `BURN_DOT_PATH` names: what a user calls, or the composition that it must agree with.
pub fn apply<const L: usize, const R: usize, const O: usize, K: burn::tensor::kind::Numeric>(
    dot: &Dot,
    lhs: Tensor<L, K>,
    rhs: Tensor<R, K>,
) -> Tensor<O, K> {
    match std::env::var("BURN_DOT_PATH").as_deref().unwrap_or("fused") {
        "fused" => dot.forward(lhs, rhs),
        "composed" => dot.forward_composed(lhs, rhs),
        other => panic!("BURN_DOT_PATH={other} is neither fused nor composed"),
    }
}

/// Whether the layer under test has kernels for CPUs; else it is composed of Burn's operations, whose sums are Burn's, or has those for GPUs.
pub fn has_kernels() -> bool {
    !is_composed() && backend() == "flex"
}

/// Whether the layer under test has kernels for GPUs.
pub fn has_gpu_kernels() -> bool {
    !is_composed() && is_cubecl()
}

/// Whether Burn composes the layer under test, and takes its gradients, too.
pub fn is_composed() -> bool {
    std::env::var("BURN_DOT_PATH").is_ok_and(|named| named == "composed")
}

/// The value of one, the gradient of the other: whatever a wrong backward pass would do.
pub fn value_of<const D: usize>(value: Tensor<D>, gradient: Tensor<D>) -> Tensor<D> {
    value.detach() + gradient.clone() - gradient.detach()
}

/// How the numbers of an input lie in memory. The values are the same in all of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Layout {
    Contiguous,
    /// The axes stored in reverse order.
    Transposed,
    /// A window of a larger tensor.
    Sliced,
    /// The last axis stored backwards.
    Flipped,
}

pub const LAYOUTS: [Layout; 4] = [Layout::Contiguous, Layout::Transposed, Layout::Sliced, Layout::Flipped];

/// What the layer gave.
#[derive(Debug)]
pub struct Given {
    pub out: Array,
    pub grad_lhs: Array,
    pub grad_rhs: Array,
}

pub fn array<const D: usize, K: burn::tensor::kind::Basic>(tensor: &Tensor<D, K>) -> Array {
    Array::new(&tensor.dims(), tensor.to_data().iter::<f64>().collect())
}

pub fn tensor<const D: usize>(x: &Array, dtype: DType, device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(x.data.clone(), x.shape.clone()), (device, dtype))
}

/// The numbers as the dtype holds them.
pub fn rounded(x: &Array, dtype: DType) -> Array {
    Array::new(&x.shape, TensorData::new(x.data.clone(), x.shape.clone()).convert_dtype(dtype).iter::<f64>().collect())
}

/// A leaf, and the view of it that holds `x` in the given layout.
fn leaf_and_view<const D: usize>(x: &Array, dtype: DType, layout: Layout, device: &Device) -> (Tensor<D>, Tensor<D>) {
    let plain = tensor::<D>(x, dtype, device);
    let leaf = unview(plain, layout).require_grad();
    let view = view(leaf.clone(), layout, &x.shape);
    (leaf, view)
}

fn unview<const D: usize>(x: Tensor<D>, layout: Layout) -> Tensor<D> {
    let last = D - 1;
    match layout {
        Layout::Contiguous => x,
        Layout::Transposed => materialized(x.permute(core::array::from_fn::<isize, D, _>(|axis| (last - axis) as isize))),
        Layout::Sliced => {
            let mut shape = x.dims();
            shape[last] = 1;
            let edge = Tensor::<D>::full(shape, 7.0, (&x.device(), x.dtype()));
            Tensor::cat(vec![edge.clone(), x, edge], last)
        }
        Layout::Flipped => materialized(x.flip([last])),
    }
}

fn view<const D: usize>(leaf: Tensor<D>, layout: Layout, shape: &[usize]) -> Tensor<D> {
    let last = D - 1;
    match layout {
        Layout::Contiguous => leaf,
        Layout::Transposed => leaf.permute(core::array::from_fn::<isize, D, _>(|axis| (last - axis) as isize)),
        Layout::Sliced => leaf.narrow(last, 1, shape[last]),
        Layout::Flipped => leaf.flip([last]),
    }
}

/// A copy that lies in memory in its own order.
fn materialized<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let options = (&x.device(), x.dtype());
    Tensor::from_data(x.to_data(), options)
}

/// Calls a function of three ranks, `f::<L, R, O>(…)`, by the ranks of lhs, rhs and the output.
macro_rules! with_ranks {
    ($ranks:expr, $f:ident $args:tt) => {
        match $ranks {
            (1, rhs, out) => with_ranks!(@rhs 1, rhs, out, [1 2 3], [1 2], $f $args),
            (2, rhs, out) => with_ranks!(@rhs 2, rhs, out, [1 2 3 4 5], [1 2 3 4 5], $f $args),
            (3, rhs, out) => with_ranks!(@rhs 3, rhs, out, [2 3 4 5], [2 3 4 5 6], $f $args),
            (4, rhs, out) => with_ranks!(@rhs 4, rhs, out, [2 3 4 5], [2 3 4 5 6], $f $args),
            (5, rhs, out) => with_ranks!(@rhs 5, rhs, out, [2 3 4 5], [2 3 4 5 6 7], $f $args),
            (rank, _, _) => panic!("no lhs of rank {rank} here"),
        }
    };
    (@rhs $l:literal, $rhs:ident, $out:ident, [$($r:literal)*], $os:tt, $f:ident $args:tt) => {
        match $rhs {
            $($r => with_ranks!(@out $l, $r, $out, $os, $f $args),)*
            rank => panic!("no rhs of rank {rank} here"),
        }
    };
    (@out $l:literal, $r:literal, $out:ident, [$($o:literal)*], $f:ident $args:tt) => {
        match $out {
            $($o => $f::<$l, $r, $o> $args,)*
            rank => panic!("no output of rank {rank} here"),
        }
    };
}
pub(crate) use with_ranks;

fn run_ranked<const L: usize, const R: usize, const O: usize>(
    config: &DotConfig,
    dtype: DType,
    layout: Layout,
    lhs: &Array,
    rhs: &Array,
    cotangent: &dyn Fn(&[usize]) -> Array,
) -> Given {
    let device = device().autodiff();
    let (lhs_leaf, lhs_view) = leaf_and_view::<L>(lhs, dtype, layout, &device);
    let (rhs_leaf, rhs_view) = leaf_and_view::<R>(rhs, dtype, layout, &device);
    let out: Tensor<O> = apply(&config.init(), lhs_view, rhs_view);
    let cotangent = tensor::<O>(&cotangent(&out.dims()), out.dtype(), &device);
    let grads = (out.clone() * cotangent).sum().backward();
    let grad = |shape: &[usize], grad: Array| {
        assert_eq!(grad.shape, shape);
        grad
    };
    let lhs_grad = lhs_leaf.grad(&grads).expect("lhs has a gradient");
    let rhs_grad = rhs_leaf.grad(&grads).expect("rhs has a gradient");
    assert_eq!((lhs_grad.dtype(), rhs_grad.dtype()), (dtype, dtype), "gradients have the dtype of the inputs");
    Given {
        out: array(&out),
        grad_lhs: grad(&lhs.shape, array(&view(lhs_grad, layout, &lhs.shape))),
        grad_rhs: grad(&rhs.shape, array(&view(rhs_grad, layout, &rhs.shape))),
    }
}

/// Runs forward and backward.
pub fn run(
    config: &DotConfig,
    dtype: DType,
    layout: Layout,
    lhs: &Array,
    rhs: &Array,
    cotangent: &dyn Fn(&[usize]) -> Array,
) -> Given {
    let ranks = (lhs.shape.len(), rhs.shape.len(), out_rank(config, &lhs.shape, &rhs.shape));
    with_ranks!(ranks, run_ranked(config, dtype, layout, lhs, rhs, cotangent))
}

/// The rank of the output.
pub fn out_rank(config: &DotConfig, lhs: &[usize], rhs: &[usize]) -> usize {
    let known = |sizes: &[usize]| sizes.iter().map(|&size| Some(size)).collect::<Vec<_>>();
    config.output_shape(&known(lhs), &known(rhs)).unwrap_or_else(|error| panic!("{error}")).len()
}

/// The product that a configuration means, resolved by hand for the oracle.
pub fn product(config: &DotConfig, lhs_rank: usize, rhs_rank: usize) -> Product {
    let resolve = |axis: isize, rank: usize| if axis < 0 { (axis + rank as isize) as usize } else { axis as usize };
    let pairs = match &config.axes {
        Axes::Both(axis) => vec![(*axis, *axis)],
        Axes::Pair(lhs, rhs) => vec![(*lhs, *rhs)],
        Axes::Pairs(pairs) => pairs.clone(),
    };
    Product {
        pairs: pairs.iter().map(|&(l, r)| (resolve(l, lhs_rank), resolve(r, rhs_rank))).collect(),
        batch_dims: config.batch_dims,
        floor: config.normalize.then_some(config.epsilon),
    }
}

/// Runs the layer and compares every number with the oracle's, each within `k·ε` of the dtype times the scale of its terms.
pub fn assert_exact(name: &str, config: &DotConfig, dtype: DType, layout: Layout, lhs: &Array, rhs: &Array) {
    let (lhs, rhs) = (rounded(lhs, dtype), rounded(rhs, dtype));
    let out_dtype = config.output_dtype.unwrap_or(dtype);
    let cotangent = |shape: &[usize]| rounded(&wave(shape, 0.7), out_dtype);
    let given = run(config, dtype, layout, &lhs, &rhs, &cotangent);
    let expected = oracle::answer(&product(config, lhs.shape.len(), rhs.shape.len()), &lhs, &rhs, cotangent);
    let name = format!("{name}, {dtype:?}, {layout:?}");
    assert_answer(&name, &given, &expected, tolerance(out_dtype), tolerance(dtype));
}

pub fn assert_answer(name: &str, given: &Given, expected: &Answer, out_tolerance: f64, grad_tolerance: f64) {
    assert_close(&format!("{name}: out"), &given.out, &expected.out, &expected.out_scale, out_tolerance);
    assert_close(&format!("{name}: grad_lhs"), &given.grad_lhs, &expected.grad_lhs, &expected.grad_lhs_scale, grad_tolerance);
    assert_close(&format!("{name}: grad_rhs"), &given.grad_rhs, &expected.grad_rhs, &expected.grad_rhs_scale, grad_tolerance);
}

/// Sixteen units in the last place of f64 and f32 for all the steps together, one rounding for the half types.
pub fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 16.0 * f64::EPSILON,
        DType::F32 => 16.0 * f64::from(f32::EPSILON),
        DType::F16 => 0.6 * f64::from(half::f16::EPSILON),
        DType::BF16 => 0.6 * f64::from(half::bf16::EPSILON),
        other => panic!("no tolerance for {other:?}"),
    }
}

pub fn assert_close(name: &str, given: &Array, expected: &Array, scale: &Array, tolerance: f64) {
    assert_eq!(given.shape, expected.shape, "{name}: shape");
    for (i, ((&a, &b), &scale)) in given.data.iter().zip(&expected.data).zip(&scale.data).enumerate() {
        let allowed = tolerance * scale.max(b.abs()) + f64::MIN_POSITIVE;
        assert!((a - b).abs() <= allowed, "{name}: number {i} is {a:e}, not {b:e}; off by {:e}, allowed {allowed:e}", a - b);
    }
}

/// Distinct numbers of both signs, without a random generator.
pub fn wave(shape: &[usize], phase: f64) -> Array {
    let mut i = 0.0;
    Array::from_fn(shape, |_| {
        i += 1.0;
        1.3 * (phase + i * 1.618).sin() + 0.2
    })
}
