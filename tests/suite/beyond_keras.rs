//! What Keras' Dot cannot do: batch_dims, several pairs, output dtype, broadcast. (Values and gradients are in the table of cases.)

use burn::prelude::*;
use burn::tensor::{DType, FloatDType};
use burn_dot::DotConfig;

use crate::{
    device::{device, float_dtypes},
    run::{Layout, apply, array, assert_exact, tensor, wave},
};

#[test]
fn batch_dims_0_pairs_every_row_with_every_row() {
    let device = device();
    let queries = Tensor::<2>::from_data([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], &device);
    let keys = Tensor::<2>::from_data([[2.0, 3.0], [5.0, 7.0]], &device);
    let scores: Tensor<2> = apply(&DotConfig::new(1).with_batch_dims(0).init(), queries, keys);
    assert_eq!(scores.dims(), [3, 2]);
    assert_eq!(array(&scores).data, [2.0, 5.0, 3.0, 7.0, 5.0, 12.0]);
}

#[test]
fn batch_dims_2_gives_the_scores_of_attention_heads() {
    let device = device();
    let (q, k) = (wave(&[2, 3, 4, 6], 0.1), wave(&[2, 3, 5, 6], 0.2));
    let (q, k) = (tensor::<4>(&q, DType::F32, &device), tensor::<4>(&k, DType::F32, &device));
    let scores: Tensor<4> = apply(&DotConfig::new(3).with_batch_dims(2).init(), q.clone(), k.clone());
    let expected = q.matmul(k.swap_dims(2, 3));
    assert!(scores.all_close(expected, Some(1e-5), Some(1e-6)));
}

#[test]
fn several_pairs_are_normalized_jointly() {
    // The norm is over both axes together: the cosine of two matrices as vectors.
    let device = device();
    let x = Tensor::<3>::from_data([[[1.0, 2.0], [2.0, 4.0]]], &device);
    let out: Tensor<2> = apply(&DotConfig::new([(1, 1), (2, 2)]).with_normalize(true).init(), x.clone(), x.clone());
    assert!((array(&out).data[0] - 1.0).abs() < 1e-6);
    let swapped: Tensor<2> = apply(&DotConfig::new([(1, 2), (2, 1)]).with_normalize(true).init(), x.clone(), x);
    assert!((array(&swapped).data[0] - 1.0).abs() < 1e-6, "a symmetric matrix is its own transpose");
}

#[test]
fn half_precision_inputs_may_ask_for_f32_scores() {
    for dtype in float_dtypes() {
        for output in float_dtypes() {
            let output: FloatDType = output.into();
            for normalize in [false, true] {
                let config = DotConfig::new(2).with_output_dtype(output).with_normalize(normalize);
                let device = device();
                let (lhs, rhs) = (wave(&[2, 3, 40], 0.1), wave(&[2, 4, 40], 0.2));
                let out: Tensor<3> =
                    apply(&config.init(), tensor::<3>(&lhs, dtype, &device), tensor::<3>(&rhs, dtype, &device));
                assert_eq!(out.dtype(), DType::from(output));
                if DType::from(output).size() >= dtype.size() {
                    // The product is not rounded to the inputs' dtype on the way.
                    assert_exact("output dtype", &config, dtype, Layout::Contiguous, &lhs, &rhs);
                    assert_exact(
                        "output dtype",
                        &config,
                        dtype,
                        Layout::Contiguous,
                        &wave(&[2, 1, 60], 0.1),
                        &wave(&[2, 1, 60], 0.2),
                    );
                }
            }
        }
    }
}

#[test]
fn a_batch_of_one_is_repeated_only_on_request() {
    let device = device();
    let (one, many) = (Tensor::<2>::ones([1, 3], &device), Tensor::<2>::ones([4, 3], &device));
    let refused: Result<Tensor<2>, _> = DotConfig::new(1).init().try_forward(one.clone(), many.clone());
    assert!(refused.is_err());
    let out: Tensor<2> = apply(&DotConfig::new(1).with_broadcast_batch(true).init(), one, many);
    assert_eq!(array(&out).data, [3.0; 4]);
}

#[test]
fn a_contracted_size_of_one_never_meets_another_size() {
    let device = device();
    let (one, many) = (Tensor::<2>::ones([4, 1], &device), Tensor::<2>::ones([4, 3], &device));
    let refused: Result<Tensor<2>, _> = DotConfig::new(1).with_broadcast_batch(true).init().try_forward(one, many);
    assert!(refused.is_err());
}
