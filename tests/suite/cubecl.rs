//! What Burn's operations make of the layer's results, where Burn itself is wrong on CubeCL backends (wgpu, cuda, …).
//!
//! The first tests hold on every device: gradients lie in memory so that Burn's reductions read them rightly, and zeros are zeros.
//! The last ones state faults of Burn 0.22.1, with Burn alone. Where one of those turns red, Burn has been mended, and what the
//! layer does about it, or says of it, can go.

use burn::prelude::*;
use burn::tensor::DType;
use burn_dot::DotConfig;

#[path = "../../examples/common/panics.rs"]
mod panics;

use panics::in_a_line;

use crate::{
    alone::alone,
    cases::{Case, table},
    device::{backend, device, float_dtypes, int_dtypes, is_cubecl, variable},
    oracle::{self, Array, indices},
    run::{Layout, apply, array, assert_close, assert_exact, out_rank, product, rounded, tensor, tolerance, wave, with_ranks},
};

/// Inputs whose batch axis `axis` is a leaf's axis of 1, repeated: the gradients of the leaves.
fn leaf_grads<const L: usize, const R: usize, const O: usize>(
    config: &DotConfig,
    dtype: DType,
    [lhs, rhs]: [&Array; 2],
    [lhs_shape, rhs_shape]: [&[usize]; 2],
    cotangent: &dyn Fn(&[usize]) -> Array,
) -> [Array; 2] {
    let device = device().autodiff();
    let x = tensor::<L>(lhs, dtype, &device).require_grad();
    let y = tensor::<R>(rhs, dtype, &device).require_grad();
    let sizes = |shape: &[usize]| shape.iter().map(|&size| size as i64).collect::<Vec<_>>();
    let (lhs, rhs) = (
        x.clone().expand::<L, _>(<[i64; L]>::try_from(sizes(lhs_shape)).expect("the rank of lhs")),
        y.clone().expand::<R, _>(<[i64; R]>::try_from(sizes(rhs_shape)).expect("the rank of rhs")),
    );
    let out: Tensor<O> = apply(&config.init(), lhs, rhs);
    let cotangent = tensor::<O>(&cotangent(&out.dims()), out.dtype(), &device);
    let grads = (out * cotangent).sum().backward();
    [array(&x.grad(&grads).expect("lhs has a gradient")), array(&y.grad(&grads).expect("rhs has a gradient"))]
}

fn repeated(x: &Array, shape: &[usize]) -> Array {
    Array::from_fn(shape, |index| x.data[position(x, index)])
}

fn position(x: &Array, index: &[usize]) -> usize {
    x.shape.iter().zip(index).fold(0, |place, (&size, &i)| place * size + i % size)
}

/// Sums what was repeated.
fn collected(x: &Array, leaf: &Array) -> Array {
    let mut sum = leaf.map(|_| 0.0);
    for (index, x) in indices(&x.shape).iter().zip(&x.data) {
        let place = position(leaf, index);
        sum.data[place] += x;
    }
    sum
}

fn assert_leaf_grads_exact(config: &DotConfig, dtype: DType, lhs_shape: &[usize], rhs_shape: &[usize], axis: usize) {
    let leaf = |shape: &[usize], phase| {
        let mut shape = shape.to_vec();
        shape[axis] = 1;
        rounded(&wave(&shape, phase), dtype)
    };
    let leaves = [leaf(lhs_shape, 0.1), leaf(rhs_shape, 0.4)];
    let cotangent = |shape: &[usize]| rounded(&wave(shape, 0.7), dtype);
    let ranks = (lhs_shape.len(), rhs_shape.len(), out_rank(config, lhs_shape, rhs_shape));
    let [given_lhs, given_rhs] =
        with_ranks!(ranks, leaf_grads(config, dtype, [&leaves[0], &leaves[1]], [lhs_shape, rhs_shape], &cotangent));

    let [lhs, rhs] = [repeated(&leaves[0], lhs_shape), repeated(&leaves[1], rhs_shape)];
    let product = product(config, lhs_shape.len(), rhs_shape.len());
    let expected = oracle::answer(&product, &lhs, &rhs, cotangent);
    let name = format!("{lhs_shape:?} · {rhs_shape:?}, {config:?}, {dtype:?}, axis {axis} repeated");
    // One rounding for each gradient that is summed, in the halves' own precision.
    let tolerance = if DType::size(&dtype) == 2 { 4.0 } else { 1.0 } * tolerance(dtype);
    let check = |side: &str, given: &Array, leaf: &Array, grad: &Array, scale: &Array| {
        assert_close(&format!("{name}: {side}"), given, &collected(grad, leaf), &collected(scale, leaf), tolerance);
    };
    check("lhs", &given_lhs, &leaves[0], &expected.grad_lhs, &expected.grad_lhs_scale);
    check("rhs", &given_rhs, &leaves[1], &expected.grad_rhs, &expected.grad_rhs_scale);
}

#[test]
fn the_gradient_of_a_repeated_leaf_is_the_sum_over_its_copies() {
    let pairs = DotConfig::new([(4, 2), (2, 1)]);
    for dtype in float_dtypes() {
        assert_leaf_grads_exact(&pairs, dtype, &[3, 4, 1, 1, 2], &[3, 1, 2, 3], 0);
    }
    for Case { lhs, rhs, config } in table() {
        for axis in 0..config.batch_dims {
            for normalize in [false, true] {
                assert_leaf_grads_exact(&config.clone().with_normalize(normalize), DType::F32, lhs, rhs, axis);
            }
        }
    }
}

#[test]
fn the_gradient_of_a_batch_that_the_layer_repeats_is_the_sum_over_it() {
    let shapes: [(&[usize], &[usize], DotConfig); 2] = [
        (&[5, 2, 5, 1, 3], &[1, 2, 5, 8, 1], DotConfig::new([(-2, -1), (2, 2)]).with_batch_dims(2)),
        (&[3, 2, 4, 5], &[1, 2, 5, 4], DotConfig::new((3, 2)).with_batch_dims(2)),
    ];
    for dtype in float_dtypes() {
        for (lhs, rhs, config) in &shapes {
            for normalize in [false, true] {
                let config = config.clone().with_broadcast_batch(true).with_normalize(normalize);
                let name = format!("{lhs:?} · {rhs:?}, {config:?}");
                assert_exact(&name, &config, dtype, Layout::Contiguous, &wave(lhs, 0.1), &wave(rhs, 0.4));
            }
        }
    }
}

/// Leaves numbers other than zero in the memory that the device hands out next.
fn dirty_memory() {
    for shape in [[1, 2, 8, 15], [4, 8, 1, 33], [4, 8, 3, 33]] {
        let device = device().autodiff();
        let x = tensor::<4>(&wave(&shape, 0.1), DType::F32, &device).require_grad();
        let out: Tensor<4> = apply(&DotConfig::new(3).with_batch_dims(2).init(), x.clone(), x.clone());
        let grads = (out.clone() * out).sum().backward();
        assert!(array(&x.grad(&grads).expect("a gradient")).data.iter().all(|x| *x != 0.0));
    }
}

fn empty_grads<const L: usize, const R: usize, const O: usize>(
    config: &DotConfig,
    dtype: DType,
    [lhs, rhs]: [&[usize]; 2],
    before_lhs: fn(Tensor<L>) -> Tensor<L>,
    before_rhs: fn(Tensor<R>) -> Tensor<R>,
) -> [Array; 3] {
    let device = device().autodiff();
    let x = tensor::<L>(&wave(lhs, 0.1), dtype, &device).require_grad();
    let y = tensor::<R>(&wave(rhs, 0.4), dtype, &device).require_grad();
    let out: Tensor<O> = apply(&config.init(), before_lhs(x.clone()), before_rhs(y.clone()));
    let grads = out.clone().sum().backward();
    [array(&out), array(&x.grad(&grads).expect("lhs has a gradient")), array(&y.grad(&grads).expect("rhs has a gradient"))]
}

/// Products of inputs that hold nothing, or with an output that holds nothing: output and gradients are zeros.
fn assert_zeros(products: &[(&[usize], &[usize], DotConfig)], computed: bool) {
    for dtype in float_dtypes() {
        for normalize in [false, true] {
            for (lhs, rhs, config) in products {
                let config = config.clone().with_normalize(normalize);
                let ranks = (lhs.len(), rhs.len(), out_rank(&config, lhs, rhs));
                dirty_memory();
                let given = if computed {
                    with_ranks!(ranks, empty_grads(&config, dtype, [lhs, rhs], |x| x * 1.5, |y| y * 1.5))
                } else {
                    with_ranks!(ranks, empty_grads(&config, dtype, [lhs, rhs], |x| x, |y| y))
                };
                for given in given {
                    assert!(given.data.iter().all(|x| *x == 0.0), "{lhs:?} · {rhs:?}, {config:?}, {dtype:?}: {given:?}");
                }
            }
        }
    }
}

fn empty_contractions_and_free_axes() -> [(&'static [usize], &'static [usize], DotConfig); 3] {
    [
        (&[2, 3], &[2, 3, 0], DotConfig::new(1)),
        (&[2, 3, 0], &[2, 0, 4], DotConfig::new((2, 1))),
        (&[2, 0], &[2, 0], DotConfig::new(1)),
    ]
}

#[test]
fn an_empty_product_has_zero_gradients_whatever_was_in_memory() {
    assert_zeros(&empty_contractions_and_free_axes(), false);
    let empty_beside_one: [(&[usize], &[usize], DotConfig); 3] = [
        (&[1, 2, 8, 15], &[0, 2, 8, 15], DotConfig::new(3).with_batch_dims(3).with_broadcast_batch(true)),
        (&[4, 8, 1, 33], &[4, 8, 0, 33], DotConfig::new(3).with_batch_dims(2)),
        (&[0, 3, 5], &[0, 5, 4], DotConfig::new((2, 1))),
    ];
    assert_zeros(&empty_beside_one, false);
}

#[test]
fn empty_inputs_may_come_from_an_operation() {
    assert_zeros(&empty_contractions_and_free_axes(), true);
}

/// cubek-reduce 0.3.1 reads several numbers at once where the axes next in memory agree between input and output. It counts every
/// place at which the two orders agree (`filter_map` in `generate_vector_size`), not only those before the first disagreement: of three
/// axes in reverse the middle one. Hence `in_memory_order` in `reference.rs`.
#[test]
fn burn_alone_sums_axes_that_lie_in_reverse_wrongly() {
    // x[i, 0, k, j] = 4i + 2j + k
    let x = Tensor::<1, Int>::arange(0..8, &device()).float().reshape([2, 2, 2, 1]).permute([0, 3, 2, 1]);
    let sum = array(&x.sum_dim(0)).data;
    assert_eq!(sum != [4.0, 8.0, 6.0, 10.0], is_cubecl(), "{sum:?}");
}

/// A cast of u32 takes the highest bit for a sign in WGSL. Hence the mask in `int_dot` in `reference.rs`.
#[test]
fn burn_alone_casts_a_large_u32_to_a_negative_i64() {
    if variable("BURN_DEVICE") == "remote" {
        return; // A cast of integers ends the session there (burn-router 0.22.1).
    }
    if int_dtypes().contains(&DType::I64) && int_dtypes().contains(&DType::U32) {
        let x = Tensor::<1, Int>::from_data([u32::MAX], (&device(), DType::U32)).cast(DType::I64);
        let given = array(&x).data;
        assert_eq!(given != [f64::from(u32::MAX)], backend() == "wgpu", "{given:?}");
    }
}

/// burn-cubecl-fusion 0.22.1 takes a size of 1 beside another size for a broadcast, also beside 0: both operations become one kernel
/// of the larger shape, which is empty and never runs. Hence `zeros` in `reference.rs`.
#[test]
fn burn_alone_loses_an_operation_that_is_fused_with_an_empty_one() {
    if is_cubecl() && !cfg!(feature = "fusion") {
        return; // Nothing is fused, and the empty operation panics: see below.
    }
    let device = device();
    let one = Tensor::<2>::ones([1, 3], &device) * 7.25;
    let _empty = Tensor::<2>::ones([0, 3], &device) * 7.25;
    let given = array(&one).data;
    assert_eq!(given != [7.25; 3], is_cubecl(), "{given:?}");
}

/// `CubeTensor::is_nonoverlapping` of burn-cubecl 0.22.1 subtracts 1 from each size. Where overflow is checked, an operation that may
/// write over an input with an empty first axis panics; otherwise the number is not needed. The layer does no arithmetic with empty
/// tensors, but its user may.
#[test]
fn burn_alone_panics_at_an_operation_on_an_empty_batch() {
    let device = device();
    let empty = move || array(&(Tensor::<2>::from_data(TensorData::new(Vec::<f32>::new(), [0, 3]), &device) * 2.0)).data;
    let given = std::panic::catch_unwind(std::panic::AssertUnwindSafe(empty));
    assert_eq!(given.is_err(), is_cubecl() && cfg!(debug_assertions), "{given:?}");
}

/// In a process of its own: the device is of no use afterwards. On wgpu, whose buffers are limited; others might have the memory.
#[test]
fn a_buffer_that_is_too_large_for_the_device_is_named_in_a_line() {
    if backend() != "wgpu" {
        return;
    }
    let Some(output) = alone("cubecl::a_buffer_that_is_too_large_for_the_device_is_named_in_a_line") else {
        let x = Tensor::<2>::ones([1 << 15, 1 << 15], &device()); // 4 GiB
        let sum = DotConfig::new(1).init().forward::<2, 2, 2, _>(x.clone(), x).sum().into_scalar::<f32>();
        panic!("it was there: {sum}");
    };
    let said = String::from_utf8_lossy(&output.stderr);
    let panic = said.split_once(" panicked at ").and_then(|(_, panic)| panic.split_once(":\n")).expect(&said).1;
    let line = in_a_line(panic);
    assert!(
        line.starts_with("more than the device can allocate at once: can't allocate buffer of size: "),
        "{line}\nof\n{said}"
    );
}

#[test]
fn a_panic_is_said_by_its_first_line_and_its_innermost_cause() {
    for (panic, line) in [
        ("", "a panic: "),
        ("index out of bounds\nnote: more", "a panic: index out of bounds"),
        ("it failed\nCaused by:\n  one thing\nCaused by:\n  another\nNo backtrace", "a panic: it failed: another"),
        // As CubeCL says it for Vulkan and CUDA, and for HIP.
        (
            "it failed\nCaused by:\n  An IO error happened\nCaused by:\n  out of device memory allocating 4096 bytes\n",
            "the device has no memory left: out of device memory allocating 4096 bytes",
        ),
        (
            "it failed\nCaused by:\n  An out-of-memory error happened during launch\n",
            "the device has no memory left: An out-of-memory error happened during launch",
        ),
    ] {
        assert_eq!(in_a_line(panic), line);
    }
}
