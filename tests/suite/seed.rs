//! The two examples of `tf.keras.layers.Dot`'s documentation, to the digit.

use burn::nn::LinearConfig;
use burn::prelude::*;
use burn_dot::{DotConfig, dot};

use crate::{
    device::{device, int_dtypes},
    run::array,
};

fn arange<const D: usize>(from: i64, shape: [usize; D]) -> Tensor<D, Int> {
    let count = shape.iter().product::<usize>() as i64;
    Tensor::arange(from..from + count, &device()).reshape(shape)
}

#[test]
fn integers_in_and_integers_out() {
    for dtype in int_dtypes().into_iter().filter(|dtype| dtype.size() > 1) {
        let x = arange(0, [1, 5, 2]).cast(dtype);
        let y = arange(10, [1, 2, 5]).cast(dtype);
        let out: Tensor<3, Int> = DotConfig::new((1, 2)).init().forward(x.clone(), y.clone());
        assert_eq!(out.dims(), [1, 2, 2]);
        assert_eq!(out.dtype(), dtype);
        assert_eq!(array(&out).data, [260.0, 360.0, 320.0, 445.0]);
        assert_eq!(array::<3, Int>(&dot(x, y, (1, 2))).data, [260.0, 360.0, 320.0, 445.0], "the functional form");
    }
}

#[test]
fn integers_wrap_in_their_own_dtype() {
    for dtype in int_dtypes().into_iter().filter(|dtype| dtype.size() == 1) {
        let x = arange(0, [1, 5, 2]).cast(dtype);
        let y = arange(10, [1, 2, 5]).cast(dtype);
        let out: Tensor<3, Int> = DotConfig::new((1, 2)).init().forward(x, y);
        assert_eq!(out.dtype(), dtype);
        let wrapped =
            [260i64, 360, 320, 445].map(|value| if dtype.is_uint() { f64::from(value as u8) } else { f64::from(value as i8) });
        assert_eq!(array(&out).data, wrapped, "{dtype:?}");
    }
}

#[test]
fn large_integers_keep_every_digit() {
    for dtype in int_dtypes().into_iter().filter(|dtype| dtype.size() == 8) {
        let x = Tensor::<2, Int>::from_data([[3_000_000_001i64, 2]], (&device(), dtype));
        let y = Tensor::<2, Int>::from_data([[1_000_000_007i64, 5]], (&device(), dtype));
        let out: Tensor<2, Int> = DotConfig::new(1).init().forward(x, y);
        assert_eq!(out.into_scalar::<i64>(), 3_000_000_001 * 1_000_000_007 + 10, "{dtype:?}");
    }
}

#[test]
fn two_dense_layers_and_a_dot_give_one_score_per_row() {
    let device = device();
    let x = arange(0, [5, 2]).float();
    let y = arange(10, [5, 2]).float();
    let dense = LinearConfig::new(2, 8);
    let scores: Tensor<2> = DotConfig::new(1).init().forward(dense.init(&device).forward(x), dense.init(&device).forward(y));
    assert_eq!(scores.dims(), [5, 1]);
}
