//! Traps that others fell into, each with the issue that tells of it.

use burn::prelude::*;
use burn::tensor::DType;
use burn_dot::DotConfig;

use crate::{
    device::{device, float_dtypes},
    oracle::Array,
    run::{Layout, apply, array, assert_exact, tensor, tolerance, wave},
};

#[test]
fn rows_with_rows_give_one_column_not_a_square() {
    // keras#5131, keras#4588
    let x = Tensor::<2>::ones([3, 4], &device());
    let out: Tensor<2> = apply(&DotConfig::new(1).init(), x.clone(), x);
    assert_eq!(array(&out), Array::new(&[3, 1], vec![4.0; 3]));
}

#[test]
fn minus_one_means_the_last_axis_of_each_input_at_every_rank() {
    // keras#18622: resolved after an expand_dims, it meant another axis.
    for (lhs, rhs) in [(&[2, 5][..], &[2, 3, 4, 5][..]), (&[2, 3, 4, 5], &[2, 5]), (&[2, 3, 4, 5], &[2, 6, 7, 5])] {
        for dtype in float_dtypes() {
            assert_exact("axis -1", &DotConfig::new(-1), dtype, Layout::Contiguous, &wave(lhs, 0.1), &wave(rhs, 0.2));
        }
    }
}

#[test]
fn an_empty_tensor_is_reshaped_without_guessing() {
    // pytorch#63352: reshape with −1 is ambiguous when another size is 0.
    let x = Tensor::<4>::ones([0, 2, 3, 5], &device());
    let y = Tensor::<3>::ones([0, 5, 4], &device());
    let out: Tensor<4> = apply(&DotConfig::new((3, 1)).init(), x, y);
    assert_eq!(out.dims(), [0, 2, 3, 4]);
}

#[test]
fn two_short_vectors_keep_their_cosine() {
    // burn#5584: the product of two clamped norms underflows to 0.
    for (dtype, tiny) in [(DType::F64, 1e-200), (DType::F32, 1e-30)] {
        if !float_dtypes().contains(&dtype) {
            continue;
        }
        let device = device();
        let x = |a: f64, b: f64| tensor::<2>(&Array::new(&[1, 2], vec![a * tiny, b * tiny]), dtype, &device);
        let config = DotConfig::new(1).with_normalize(true).with_epsilon(tiny / 1e3);
        let out: Tensor<2> = apply(&config.init(), x(3.0, 4.0), x(4.0, 3.0));
        assert!((array(&out).data[0] - 0.96).abs() < tolerance(dtype), "{dtype:?}: {out}");
    }
}

#[test]
fn cosine_is_neither_zero_nor_above_one_nor_nan_in_any_dtype() {
    // pytorch#69512, #65298, #32137 (f16: 0, > 1, NaN), #78064 (f32: > 1)
    for dtype in float_dtypes() {
        let device = device();
        for x in [wave(&[200, 7], 0.0), wave(&[200, 7], 0.0).map(|x| x * 1e-3), wave(&[200, 7], 0.0).map(|x| x * 2e4)] {
            let x = tensor::<2>(&x, dtype, &device);
            let out: Tensor<2> = apply(&DotConfig::new(1).with_normalize(true).init(), x.clone(), x);
            for out in array(&out).data {
                assert!((1.0 - tolerance(dtype)..=1.0).contains(&out), "{dtype:?}: {out}");
            }
        }
    }
}

#[test]
fn a_batch_is_repeated_after_it_is_normalized() {
    // pytorch#109333: normalizing the broadcast input gave √3.
    let device = device();
    let one = Tensor::<2>::ones([1, 3], &device);
    let many = Tensor::<2>::ones([3, 3], &device);
    let out: Tensor<2> = apply(&DotConfig::new(1).with_normalize(true).with_broadcast_batch(true).init(), one, many);
    for out in array(&out).data {
        assert!((out - 1.0).abs() < 1e-6, "{out}");
    }
}

#[test]
fn many_small_rows_and_one_large_product_are_both_possible() {
    // pytorch#32591, #101249: (B,1,n)×(B,n,1) by matmul is slow; keras#11665: multiply-and-sum of 3-D inputs runs out of memory.
    // The products of 512 × 512 × 512 would fill a gigabyte in f64.
    let device = device();
    let rows = Tensor::<2>::ones([65_536, 3], &device);
    let out: Tensor<2> = apply(&DotConfig::new(1).init(), rows.clone(), rows);
    assert_eq!(out.sum().into_scalar::<f32>(), 3.0 * 65_536.0);
    let square = Tensor::<3>::ones([1, 512, 512], &device);
    let out: Tensor<3> = apply(&DotConfig::new((2, 1)).init(), square.clone(), square);
    assert_eq!(out.max().into_scalar::<f32>(), 512.0);
}
