//! The two examples of `tf.keras.layers.Dot`'s documentation, to the digit.

use burn::nn::LinearConfig;
use burn::prelude::*;
use burn::tensor::DType;
use burn_dot::{DotConfig, dot};

use crate::{
    cases::{Case, table},
    device::{device, int_dtypes, turn_to_draw},
    oracle::{self, Array},
    run::{apply, array, out_rank, product, wave, with_ranks},
};

/// Not cast from another dtype: Burn 0.22.1 ends the session where an integer tensor on a remote device is.
fn arange<const D: usize>(from: i64, shape: [usize; D], dtype: DType) -> Tensor<D, Int> {
    let count = shape.iter().product::<usize>() as i64;
    let data = TensorData::new((from..from + count).collect::<Vec<_>>(), shape);
    Tensor::from_data(data.convert_dtype(dtype), (&device(), dtype))
}

#[test]
fn integers_in_and_integers_out() {
    for dtype in int_dtypes().into_iter().filter(|dtype| dtype.size() > 1) {
        let x = arange(0, [1, 5, 2], dtype);
        let y = arange(10, [1, 2, 5], dtype);
        let out: Tensor<3, Int> = apply(&DotConfig::new((1, 2)).init(), x.clone(), y.clone());
        assert_eq!(out.dims(), [1, 2, 2]);
        assert_eq!(out.dtype(), dtype);
        assert_eq!(array(&out).data, [260.0, 360.0, 320.0, 445.0]);
        assert_eq!(array::<3, Int>(&dot(x, y, (1, 2))).data, [260.0, 360.0, 320.0, 445.0], "the functional form");
    }
}

#[test]
fn integers_wrap_in_their_own_dtype() {
    for dtype in int_dtypes().into_iter().filter(|dtype| dtype.size() == 1) {
        let x = arange(0, [1, 5, 2], dtype);
        let y = arange(10, [1, 2, 5], dtype);
        let out: Tensor<3, Int> = apply(&DotConfig::new((1, 2)).init(), x, y);
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
        let out: Tensor<2, Int> = apply(&DotConfig::new(1).init(), x, y);
        assert_eq!(out.into_scalar::<i64>(), 3_000_000_001 * 1_000_000_007 + 10, "{dtype:?}");
    }
}

/// Forward on integers of any rank.
fn forward<const L: usize, const R: usize, const O: usize>(
    config: &DotConfig,
    dtype: DType,
    lhs: &Array,
    rhs: &Array,
) -> Array {
    let tensor = |x: &Array| (TensorData::new(x.data.clone(), x.shape.clone()), (device(), dtype));
    let (lhs, rhs) = (tensor(lhs), tensor(rhs));
    let lhs = Tensor::<L, Int>::from_data(lhs.0, (&lhs.1.0, lhs.1.1));
    let rhs = Tensor::<R, Int>::from_data(rhs.0, (&rhs.1.0, rhs.1.1));
    let out: Tensor<O, Int> = apply(&config.init(), lhs, rhs);
    assert_eq!(out.dtype(), dtype);
    array(&out)
}

#[test]
fn every_pairing_of_every_integer_dtype_agrees_with_the_oracle() {
    for dtype in int_dtypes() {
        for Case { lhs, rhs, config } in table() {
            // Up to 129 products of numbers up to 7: more than 8 bits hold, so they wrap there.
            let lowest = if dtype.is_uint() { 0.0 } else { -7.0 };
            let whole = |shape: &[usize], phase: f64| wave(shape, phase).map(|x| (4.0 * x).round().clamp(lowest, 7.0));
            let (lhs, rhs) = (whole(lhs, 0.1), whole(rhs, 0.4));
            let ranks = (lhs.shape.len(), rhs.shape.len(), out_rank(&config, &lhs.shape, &rhs.shape));
            let given = with_ranks!(ranks, forward(&config, dtype, &lhs, &rhs));
            let ones = |shape: &[usize]| Array::from_fn(shape, |_| 1.0);
            let exact = oracle::answer(&product(&config, ranks.0, ranks.1), &lhs, &rhs, ones).out;
            let wrapped = exact.map(|x| match dtype {
                DType::I8 => f64::from(x as i64 as i8),
                DType::U8 => f64::from(x as i64 as u8),
                _ => x,
            });
            assert_eq!(given, wrapped, "{dtype:?}, {config:?}");
        }
    }
}

fn forward_into<const L: usize, const R: usize, const O: usize>(
    config: &DotConfig,
    [input, output]: [DType; 2],
    lhs: &Array,
    rhs: &Array,
) -> Array {
    let config = config.clone().with_output_dtype(output);
    let tensor = |x: &Array| TensorData::new(x.data.clone(), x.shape.clone());
    let lhs = Tensor::<L, Int>::from_data(tensor(lhs), (&device(), input));
    let rhs = Tensor::<R, Int>::from_data(tensor(rhs), (&device(), input));
    let out: Tensor<O, Int> = apply(&config.init(), lhs, rhs);
    assert_eq!(out.dtype(), output);
    array(&out)
}

/// The largest and the smallest number of an integer dtype of at most 32 bits, by turns.
fn extremes(dtype: DType, shape: &[usize]) -> Array {
    let bits = 8 * dtype.size() as i32;
    let [least, most] =
        if dtype.is_uint() { [0.0, 2f64.powi(bits) - 1.0] } else { [-2f64.powi(bits - 1), 2f64.powi(bits - 1) - 1.0] };
    let mut i = 0;
    Array::from_fn(shape, |_| {
        i += 1;
        if i % 3 == 0 { least } else { most }
    })
}

#[test]
fn every_pairing_of_integers_is_exact_in_a_wider_output() {
    use DType::*;
    let ints = int_dtypes();
    let pairs = [[I8, I32], [I8, I64], [U8, I32], [U8, U32], [U8, I64], [I16, I64], [U16, I64], [U16, U64]];
    for dtypes in pairs.into_iter().filter(|dtypes| dtypes.iter().all(|dtype| ints.contains(dtype))) {
        for Case { lhs, rhs, config } in table() {
            let (lhs, rhs) = (extremes(dtypes[0], lhs), extremes(dtypes[0], rhs));
            let ranks = (lhs.shape.len(), rhs.shape.len(), out_rank(&config, &lhs.shape, &rhs.shape));
            let given = with_ranks!(ranks, forward_into(&config, dtypes, &lhs, &rhs));
            let ones = |shape: &[usize]| Array::from_fn(shape, |_| 1.0);
            let exact = oracle::answer(&product(&config, ranks.0, ranks.1), &lhs, &rhs, ones).out;
            assert_eq!(given, exact, "{dtypes:?}, {config:?}");
        }
    }
}

#[test]
fn the_largest_u32_stays_positive_in_a_wider_output() {
    let ints = int_dtypes();
    for output in [DType::I64, DType::U64] {
        if [DType::U32, output].iter().all(|dtype| ints.contains(dtype)) {
            let largest = Array::new(&[1, 2], vec![f64::from(u32::MAX), 0.0]);
            let one = Array::new(&[1, 2], vec![1.0, 5.0]);
            let out = forward_into::<2, 2, 2>(&DotConfig::new(1), [DType::U32, output], &largest, &one);
            assert_eq!(out.data, [f64::from(u32::MAX)], "{output:?}");
        }
    }
}

#[test]
fn integers_wrap_in_the_dtype_of_the_output() {
    let ints = int_dtypes();
    if ![DType::I8, DType::I16].iter().all(|dtype| ints.contains(dtype)) {
        return;
    }
    let x = Tensor::<2, Int>::from_data([[127; 3]], (&device(), DType::I8));
    let out: Tensor<2, Int> = apply(&DotConfig::new(1).with_output_dtype(DType::I16).init(), x.clone(), x);
    assert_eq!(array(&out).data, [f64::from((3 * 127 * 127_i32) as i16)]);
}

#[test]
fn two_dense_layers_and_a_dot_give_one_score_per_row() {
    let _turn = turn_to_draw();
    let device = device();
    let x = arange(0, [5, 2], DType::I64).float();
    let y = arange(10, [5, 2], DType::I64).float();
    let dense = LinearConfig::new(2, 8);
    let scores: Tensor<2> = apply(&DotConfig::new(1).init(), dense.init(&device).forward(x), dense.init(&device).forward(y));
    assert_eq!(scores.dims(), [5, 1]);
}
