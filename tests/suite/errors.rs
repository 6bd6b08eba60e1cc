//! The exact text of every error, that `try_forward` returns it, and that `forward` panics with it at the caller's line.

use std::panic::{Location, catch_unwind};
use std::sync::Mutex;

use burn::prelude::*;
use burn::tensor::{BoolStore, DType, IntDType, quantization::QuantScheme};
use burn_dot::{Axes, DotConfig, DotError, dot};

use crate::device::{device, float_dtypes};

fn text(config: DotConfig, lhs: &[usize], rhs: &[usize]) -> String {
    let known = |sizes: &[usize]| sizes.iter().map(|&size| Some(size)).collect::<Vec<_>>();
    config.output_shape(&known(lhs), &known(rhs)).expect_err("an error").to_string()
}

fn refused<const L: usize, const R: usize, const O: usize, K: burn::tensor::kind::Numeric>(
    config: DotConfig,
    lhs: Tensor<L, K>,
    rhs: Tensor<R, K>,
) -> DotError {
    let out: Result<Tensor<O, K>, DotError> = config.init().try_forward(lhs, rhs);
    out.expect_err("an error")
}

#[test]
fn sizes_that_differ() {
    assert_eq!(
        text(DotConfig::new((1, -1)), &[2, 3, 5], &[2, 10, 4]),
        "Dot: lhs axis 1 has size 3 but rhs axis -1 (= 2) has size 4; lhs [2, 3, 5], rhs [2, 10, 4]"
    );
    assert_eq!(
        text(DotConfig::new((1, 2)), &[2, 3, 5], &[2, 5, 4]),
        "Dot: lhs axis 1 has size 3 but rhs axis 2 has size 4; lhs [2, 3, 5], rhs [2, 5, 4]; axes (2, 1) would agree"
    );
    assert_eq!(
        text(DotConfig::new(1), &[4, 1], &[4, 3]),
        "Dot: lhs axis 1 has size 1 but rhs axis 1 has size 3; lhs [4, 1], rhs [4, 3]"
    );
}

#[test]
fn an_axis_out_of_range() {
    assert_eq!(
        text(DotConfig::new((3, 1)), &[2, 3, 5], &[2, 10, 4]),
        "Dot: lhs axis 3 is out of range for rank 3; write -3 to 2; lhs [2, 3, 5], rhs [2, 10, 4]"
    );
    assert_eq!(
        text(DotConfig::new((1, -4)), &[2, 3, 5], &[2, 10, 4]),
        "Dot: rhs axis -4 is out of range for rank 3; write -3 to 2; lhs [2, 3, 5], rhs [2, 10, 4]"
    );
    for axis in [isize::MIN, isize::MAX] {
        assert!(text(DotConfig::new(axis), &[2, 3], &[2, 3]).starts_with(&format!("Dot: lhs axis {axis} is out of range")));
    }
}

#[test]
fn a_batch_axis_contracted() {
    assert_eq!(
        text(DotConfig::new((0, 1)), &[2, 3], &[2, 3]),
        "Dot: lhs axis 0 is a batch axis (batch_dims = 1) and cannot be contracted; contract axis 1 or a later one, \
         or set a smaller batch_dims; lhs [2, 3], rhs [2, 3]"
    );
    assert_eq!(
        text(DotConfig::new((2, -2)).with_batch_dims(2), &[2, 3, 4], &[2, 3, 4]),
        "Dot: rhs axis -2 (= 1) is a batch axis (batch_dims = 2) and cannot be contracted; contract axis 2 or a later one, \
         or set a smaller batch_dims; lhs [2, 3, 4], rhs [2, 3, 4]"
    );
}

#[test]
fn the_same_axis_twice() {
    assert_eq!(
        text(DotConfig::new([(1, 1), (2, -2)]), &[2, 3, 3], &[2, 3, 3]),
        "Dot: rhs axis -2 (= 1) is contracted twice, first as 1; name each axis once; lhs [2, 3, 3], rhs [2, 3, 3]"
    );
}

#[test]
fn no_axes() {
    let text = "Dot: no axes to contract; name at least one pair, such as DotConfig::new((1, 2))";
    let config = DotConfig::new(Vec::<(isize, isize)>::new());
    assert_eq!(config.try_init().unwrap_err().to_string(), text);
    assert_eq!(config.output_shape(&[Some(2)], &[Some(2)]).unwrap_err().to_string(), text);
}

#[test]
fn batches_that_differ() {
    assert_eq!(
        text(DotConfig::new(1), &[2, 3], &[4, 3]),
        "Dot: lhs batch axis 0 has size 2 but rhs batch axis 0 has size 4; lhs [2, 3], rhs [4, 3]; \
         to multiply all of lhs with all of rhs from this axis on, set with_batch_dims(0)"
    );
    assert_eq!(
        text(DotConfig::new(1), &[1, 3], &[4, 3]),
        "Dot: lhs batch axis 0 has size 1 but rhs batch axis 0 has size 4; lhs [1, 3], rhs [4, 3]; \
         to repeat a batch of 1, set with_broadcast_batch(true)"
    );
    assert_eq!(
        text(DotConfig::new(2).with_batch_dims(2).with_broadcast_batch(true), &[2, 3, 5], &[2, 4, 5]),
        "Dot: lhs batch axis 1 has size 3 but rhs batch axis 1 has size 4; lhs [2, 3, 5], rhs [2, 4, 5]; \
         to multiply all of lhs with all of rhs from this axis on, set with_batch_dims(1)"
    );
    // That is what makes them fit.
    let output = |batch_dims| {
        DotConfig::new(-1).with_batch_dims(batch_dims).output_shape(&[Some(2), Some(3), Some(5)], &[Some(2), Some(4), Some(5)])
    };
    assert_eq!(output(1), Ok(vec![Some(2), Some(3), Some(4)]));
}

#[test]
fn a_rank_too_small() {
    assert_eq!(
        text(DotConfig::new(1), &[2, 3], &[3]),
        "Dot: rhs has rank 1 but needs at least 2: batch_dims = 1 shared axes and one to contract; \
         unsqueeze it, or set a smaller batch_dims; lhs [2, 3], rhs [3]"
    );
    assert_eq!(
        text(DotConfig::new(0).with_batch_dims(0), &[], &[3]),
        "Dot: lhs has rank 0 but needs at least 1: batch_dims = 0 shared axes and one to contract; \
         unsqueeze it, or set a smaller batch_dims; lhs [], rhs [3]"
    );
}

#[cfg(feature = "flex")] // Not every backend repeats without a copy.
#[test]
fn an_output_too_large() {
    let x = Tensor::<3>::ones([1, 1, 3], &Device::flex()).expand::<3, _>([1, 1i64 << 33, 3]);
    assert_eq!(
        refused::<3, 3, 3, _>(DotConfig::new(2), x.clone(), x).to_string(),
        "Dot: the output [1, 8589934592, 8589934592] has more elements than memory can address; multiply slices of the inputs; \
         lhs [1, 8589934592, 3], rhs [1, 8589934592, 3]"
    );
}

#[cfg(feature = "flex")]
#[test]
fn an_input_too_large() {
    let large = Tensor::<4>::ones([1, 1, 1, 1], &Device::flex()).expand::<4, _>([1, 1i64 << 31, 1i64 << 31, 2]);
    let small = Tensor::<2>::ones([1, 2], &Device::flex());
    let config = DotConfig::new((3, 1)).with_normalize(true);
    assert_eq!(
        refused::<4, 2, 3, _>(config.clone(), large.clone(), small.clone()).to_string(),
        "Dot: lhs has too many elements to count in isize, as [1, 2147483648, 2147483648, 2]; multiply slices of it; \
         lhs [1, 2147483648, 2147483648, 2], rhs [1, 2]"
    );
    // Only once the batch of rhs is repeated for lhs.
    let batch = Tensor::<2>::ones([1, 2], &Device::flex()).expand::<2, _>([1i64 << 31, 2]);
    let wide = Tensor::<3>::ones([1, 1, 2], &Device::flex()).expand::<3, _>([1, 1i64 << 31, 2]);
    assert_eq!(
        refused::<2, 3, 2, _>(DotConfig::new((1, 2)).with_broadcast_batch(true), batch, wide).to_string(),
        "Dot: rhs has too many elements to count in isize, as [2147483648, 2147483648, 2]; multiply slices of it; \
         lhs [2147483648, 2], rhs [1, 2147483648, 2]"
    );
}

#[test]
fn absurd_numbers_make_no_message_panic() {
    assert!(text(DotConfig::new(1).with_batch_dims(usize::MAX), &[2, 3], &[2, 3]).contains("lhs has rank 2"));
}

#[test]
fn an_output_of_another_rank_than_the_callers_type() {
    let x = Tensor::<3>::ones([2, 3, 4], &device());
    assert_eq!(
        refused::<3, 3, 2, _>(DotConfig::new(2), x.clone(), x).to_string(),
        "Dot: the output [2, 3, 3] has rank 3 but the caller asks for rank 2; write Tensor<3>; lhs [2, 3, 4], rhs [2, 3, 4]"
    );
}

#[test]
fn dtypes_that_differ() {
    let x = Tensor::<2>::ones([2, 3], (&device(), DType::F32));
    let other = float_dtypes().into_iter().find(|dtype| *dtype != DType::F32).expect("a device of two float dtypes");
    assert_eq!(
        refused::<2, 2, 2, _>(DotConfig::new(1), x.clone(), x.cast(other)).to_string(),
        format!("Dot: lhs is F32 but rhs is {other:?}; cast one of them, as in rhs.cast(lhs.dtype()); lhs [2, 3], rhs [2, 3]")
    );
}

#[test]
fn integers_normalized() {
    let x = Tensor::<2, Int>::ones([2, 3], (&device(), DType::I32));
    assert_eq!(
        refused::<2, 2, 2, _>(DotConfig::new(1).with_normalize(true), x.clone(), x).to_string(),
        "Dot: normalize needs float inputs but these are I32; call .float() on both, or leave normalize off; lhs [2, 3], rhs [2, 3]"
    );
}

#[test]
fn an_output_dtype_of_another_kind_than_the_inputs() {
    let integers = Tensor::<2, Int>::ones([2, 3], (&device(), DType::I32));
    let floats = Tensor::<2>::ones([2, 3], (&device(), DType::F32));
    for output in [DType::F32, DType::Bool(BoolStore::Native)] {
        let config = DotConfig::new(1).with_output_dtype(output);
        assert_eq!(
            refused::<2, 2, 2, _>(config, integers.clone(), integers.clone()).to_string(),
            format!(
                "Dot: the inputs are I32, so the output dtype must be an integer, not {output:?}; \
                 choose an integer, or call .float() on both inputs; lhs [2, 3], rhs [2, 3]"
            )
        );
    }
    for output in [DType::I32, DType::U8, DType::Bool(BoolStore::Native), DType::QFloat(QuantScheme::default())] {
        let config = DotConfig::new(1).with_output_dtype(output);
        assert_eq!(
            refused::<2, 2, 2, _>(config, floats.clone(), floats.clone()).to_string(),
            format!(
                "Dot: the inputs are F32, so the output dtype must be a float, not {output:?}; \
                 choose a float, or call .int() on both inputs; lhs [2, 3], rhs [2, 3]"
            )
        );
    }
}

#[test]
fn an_output_dtype_that_cannot_hold_every_integer_of_the_inputs() {
    use DType::*;
    for (input, output) in [(I32, I16), (I32, U32), (I32, U64), (U32, I32), (U32, U16)] {
        let x = Tensor::<2, Int>::ones([2, 3], (&device(), input));
        assert_eq!(
            refused::<2, 2, 2, _>(DotConfig::new(1).with_output_dtype(IntDType::from(output)), x.clone(), x).to_string(),
            format!(
                "Dot: the output dtype {output:?} cannot hold every value of {input:?} inputs; choose a wider one, or cast the output instead; \
                 lhs [2, 3], rhs [2, 3]"
            )
        );
    }
}

#[test]
fn a_floor_that_is_not_a_positive_finite_number() {
    for epsilon in [0.0, -1e-6, f64::INFINITY, f64::NAN] {
        let config = DotConfig::new(1).with_normalize(true).with_epsilon(epsilon);
        let text =
            format!("Dot: epsilon is {epsilon}; the least norm to divide by must be a positive finite number, such as 1e-6");
        assert_eq!(config.try_init().unwrap_err().to_string(), text);
        assert_eq!(config.output_shape(&[None, None], &[None, None]).unwrap_err().to_string(), text);
    }
}

#[cfg(all(feature = "flex", feature = "ndarray"))]
#[test]
#[allow(deprecated)]
fn devices_that_differ() {
    let x = Tensor::<2>::ones([2, 3], &Device::flex());
    let y = Tensor::<2>::ones([2, 3], &Device::ndarray());
    assert_eq!(
        refused::<2, 2, 2, _>(DotConfig::new(1), x.clone(), y.clone()).to_string(),
        format!(
            "Dot: lhs is on {:?} but rhs is on {:?}; move one of them, as in rhs.to_device(&lhs.device()); lhs [2, 3], rhs [2, 3]",
            x.device(),
            y.device()
        )
    );
}

#[cfg(feature = "ndarray")]
#[test]
#[allow(deprecated)]
fn an_output_dtype_that_the_device_lacks() {
    use burn::tensor::FloatDType;
    let device = Device::ndarray();
    let x = Tensor::<2>::ones([2, 3], &device);
    assert_eq!(
        refused::<2, 2, 2, _>(DotConfig::new(1).with_output_dtype(FloatDType::F16), x.clone(), x).to_string(),
        format!(
            "Dot: the output dtype F16 is not supported on {device:?}; choose another with with_output_dtype; lhs [2, 3], rhs [2, 3]"
        )
    );
}

#[test]
fn checkpointing_strategies_that_differ() {
    let device = device().autodiff();
    let x = Tensor::<2>::ones([2, 3], &device);
    let y = Tensor::<2>::ones([2, 3], &device.gradient_checkpointing());
    assert_eq!(
        refused::<2, 2, 2, _>(DotConfig::new(1), x, y).to_string(),
        "Dot: lhs and rhs record gradients under different checkpointing strategies; create both on one device, \
         or set one of them with with_gradient_checkpointing_strategy; lhs [2, 3], rhs [2, 3]"
    );
}

#[cfg(feature = "flex")] // Not every device can quantize; the check comes before any of them is asked.
#[test]
fn quantized_inputs() {
    let x = Tensor::<2>::ones([4, 32], (&Device::flex(), DType::F32));
    let quantized = x.clone().quantize_dynamic(&QuantScheme::default());
    assert_eq!(
        refused::<2, 2, 2, _>(DotConfig::new(1), x, quantized).to_string(),
        "Dot: rhs is quantized; call dequantize() on it first; lhs [4, 32], rhs [4, 32]"
    );
}

#[test]
fn tensors_with_and_without_autodiff_meet() {
    let x = Tensor::<2>::ones([2, 3], &device().autodiff()).require_grad();
    let y = Tensor::<2>::ones([2, 3], &device());
    let out: Tensor<2> = DotConfig::new(1).init().forward(x.clone(), y);
    assert!(x.grad(&out.backward()).is_some());
}

/// Message and line of the panic in `f`.
fn panic_of(f: impl FnOnce() + std::panic::UnwindSafe) -> (String, u32) {
    static PANIC: Mutex<Option<(String, u32)>> = Mutex::new(None);
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap();
    let this = std::thread::current().id();
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().id() == this {
            let message = info.payload_as_str().unwrap_or_default().to_string();
            *PANIC.lock().unwrap() = Some((message, info.location().map_or(0, Location::line)));
        }
    }));
    assert!(catch_unwind(f).is_err(), "no panic");
    std::panic::set_hook(before);
    PANIC.lock().unwrap().take().unwrap()
}

#[test]
fn forward_panics_with_the_same_text_at_the_callers_line() {
    let (x, y) = (Tensor::<2>::ones([2, 3], &device()), Tensor::<2>::ones([2, 4], &device()));
    let text = "Dot: lhs axis 1 has size 3 but rhs axis 1 has size 4; lhs [2, 3], rhs [2, 4]".to_string();

    let (a, b) = (x.clone(), y.clone());
    let line = line!() + 1;
    assert_eq!(panic_of(move || _ = DotConfig::new(1).init().forward::<2, 2, 2, _>(a, b)), (text.clone(), line));

    let (a, b) = (x.clone(), y.clone());
    let line = line!() + 1;
    assert_eq!(panic_of(move || _ = DotConfig::new(1).init().forward_composed::<2, 2, 2, _>(a, b)), (text.clone(), line));

    let line = line!() + 1;
    assert_eq!(panic_of(move || _ = dot::<2, 2, 2, _>(x, y, Axes::Both(1))), (text, line));

    let line = line!() + 1;
    assert_eq!(panic_of(|| _ = DotConfig::new(1).with_epsilon(0.0).init()).1, line);
}
