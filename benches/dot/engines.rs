//! Engines written in Rust: this crate's two paths, Burn's own operations, candle, ndarray.

use std::hint::black_box;

use anyhow::{Result, bail, ensure};
use burn::backend::Dispatch;
use burn::prelude::*;
use burn::tensor::{einsum, linalg};
use burn_dot::DotConfig;
use bytemuck::Pod;
use candle_core as candle;
use ndarray::{ArrayD, ArrayView2, ArrayViewMut2, Axis, Ix2, LinalgScalar, ShapeBuilder, Zip, linalg::general_mat_mul, s};
use rayon::prelude::*;

use crate::arrive::Arrive;
use crate::cells::{Case, Dtype, EPSILON, Kind, Side};
use crate::worker::{self, Loaded, fastest};

/// Calls a function of three ranks by the ranks of a case.
macro_rules! by_ranks {
    ($device:ident, $case:ident, $inputs:ident, $f:expr) => {
        match ($case.lhs.len(), $case.rhs.len()) {
            (2, 2) => burn_engine::<2, 2, 2>($device, $case, $inputs, $f),
            (2, 3) => burn_engine::<2, 3, 2>($device, $case, $inputs, $f),
            (3, 3) => burn_engine::<3, 3, 3>($device, $case, $inputs, $f),
            (4, 4) => burn_engine::<4, 4, 5>($device, $case, $inputs, $f),
            ranks => bail!("no ranks {ranks:?} here"),
        }
    };
}

pub fn load(engine: &str, device: &Device, case: &Case, inputs: [Vec<u8>; 2]) -> Result<Loaded> {
    let axes = (case.axes.0 as isize, case.axes.1 as isize);
    let dot = DotConfig::new(axes).with_normalize(case.normalize).with_batch_dims(case.batch_dims).init();
    match engine {
        "fused" => by_ranks!(device, case, inputs, move |x, y| dot.forward(x, y)),
        "composed" => by_ranks!(device, case, inputs, move |x, y| dot.forward_composed(x, y)),
        "burn" => burn_own(device, case, inputs),
        "candle" => candle_engine(case, inputs),
        "ndarray" if case.dtype == Dtype::F32 => ndarray_engine::<f32>(case, inputs, f32::sqrt, EPSILON as f32),
        "ndarray" if case.dtype == Dtype::F64 => ndarray_engine::<f64>(case, inputs, f64::sqrt, EPSILON),
        "ndarray" => bail!("no half precision"),
        other => bail!("no engine {other}"),
    }
}

fn burn_engine<const L: usize, const R: usize, const O: usize>(
    device: &Device,
    case: &Case,
    [lhs, rhs]: [Vec<u8>; 2],
    product: impl Fn(Tensor<L>, Tensor<R>) -> Tensor<O> + Clone + 'static,
) -> Result<Loaded> {
    let dtype = case.dtype.burn();
    ensure!(device.supports_dtype(dtype), "no {} on this device", case.dtype.name());
    let (lhs, rhs) =
        (TensorData::from_bytes_vec(lhs, &case.lhs[..], dtype), TensorData::from_bytes_vec(rhs, &case.rhs[..], dtype));
    let (x, y) = (Tensor::<L>::from_data(lhs, (device, dtype)), Tensor::<R>::from_data(rhs, (device, dtype)));
    let (tracked_x, tracked_y) = (x.clone().autodiff(), y.clone().autodiff());
    let both = {
        let product = product.clone();
        move |ones: Option<Tensor<O>>| {
            let (x, y) = (tracked_x.clone().require_grad(), tracked_y.clone().require_grad());
            let out = product(x.clone(), y.clone());
            let mut grads = match ones {
                Some(ones) => seeded(&out, ones).backward(),
                None => out.backward(),
            };
            (out, x.grad_remove(&mut grads), y.grad_remove(&mut grads))
        }
    };
    let bytes = |data: TensorData| data.as_bytes().to_vec();
    let all = |(out, grad_x, grad_y): (Tensor<O>, Option<Tensor<L>>, Option<Tensor<R>>)| {
        let grads = [grad_x.map(Tensor::into_data), grad_y.map(Tensor::into_data)];
        (out.dtype(), [Some(out.into_data())].into_iter().chain(grads).flatten().map(bytes).collect::<Vec<_>>())
    };
    let ones = product(x.clone(), y.clone()).ones_like();
    const MADE: &str = "the gradient of the output made";
    let seed = || Tensor::from_inner(ones.clone());
    let (make, give, given) = (both.clone(), both.clone(), seed());
    let (way, backward) = fastest(vec![
        (MADE, finished(device, move || make(None))),
        ("given", finished(device, move || give(Some(given.clone())))),
    ]);
    // Of the way that is timed.
    let (out_dtype, results) = all(both((way != MADE).then(seed)));
    ensure!(x.dtype() == dtype && out_dtype == dtype, "inputs {:?} and output {out_dtype:?}, not {dtype:?}", x.dtype());
    ensure!(bytes(product(x.clone(), y.clone()).into_data()) == results[0], "other outputs with gradients than without");
    ensure!(results.len() == 3, "a gradient is missing");
    Ok(Loaded {
        forward: finished(device, move || product(x.clone(), y.clone())),
        backward: Some(backward),
        results,
        note: Some(format!("both: {way}")),
    })
}

/// A scalar whose backward pass gives `out` this gradient. The peers in Python are given theirs; Burn makes one of ones, which takes
/// longer than a product does where it is large: fresh memory, in pages of 4 KiB.
fn seeded<const O: usize>(out: &Tensor<O>, gradient: Tensor<O>) -> Tensor<1> {
    Tensor::from_dispatch(Dispatch::float_arrive(out.clone().into_dispatch(), gradient.into_dispatch()))
}

/// A pass, and waiting for the device, if that computes while its caller goes on. Results are held until then: fusion does not write
/// those that nobody can read.
fn finished<T>(device: &Device, pass: impl Fn() -> T + 'static) -> Box<dyn FnMut()> {
    if *device == Device::flex() {
        return Box::new(move || drop(black_box(pass())));
    }
    let device = device.clone();
    Box::new(move || {
        let results = black_box(pass());
        device.sync().expect("the device computes");
        drop(results);
    })
}

/// What a user of Burn writes without this crate.
fn burn_own(device: &Device, case: &Case, inputs: [Vec<u8>; 2]) -> Result<Loaded> {
    let (normalize, axes) = (case.normalize, case.axes);
    macro_rules! unit {
        ($x:ident, $axis:expr) => {
            if normalize { linalg::vector_normalize($x, 2.0, $axis, EPSILON) } else { $x }
        };
    }
    macro_rules! einsum_engine {
        ($ranks:tt, $equation:literal) => {
            burn_engine::<{ $ranks.0 }, { $ranks.1 }, { $ranks.2 }>(device, case, inputs, move |x, y| {
                einsum!($equation, unit!(x, axes.0), unit!(y, axes.1))
            })
        };
    }
    match &case.einsum[..] {
        "bk,bk->b" if normalize => {
            burn_engine::<2, 2, 2>(device, case, inputs, |x, y| linalg::cosine_similarity(x, y, 1, Some(EPSILON)))
        }
        "bk,bk->b" => burn_engine::<2, 2, 2>(device, case, inputs, |x, y| (x * y).sum_dim(1)),
        "bmk,bnk->bmn" => {
            burn_engine::<3, 3, 3>(device, case, inputs, move |x, y| unit!(x, 2).matmul(unit!(y, 2).swap_dims(1, 2)))
        }
        "bkm,bnk->bmn" => burn_engine::<3, 3, 3>(device, case, inputs, move |x, y| {
            unit!(x, 1).swap_dims(1, 2).matmul(unit!(y, 2).swap_dims(1, 2))
        }),
        "bkm,bkn->bmn" => {
            burn_engine::<3, 3, 3>(device, case, inputs, move |x, y| unit!(x, 1).swap_dims(1, 2).matmul(unit!(y, 1)))
        }
        "mk,nk->mn" => burn_engine::<2, 2, 2>(device, case, inputs, move |x, y| unit!(x, 1).matmul(unit!(y, 1).transpose())),
        "bk,bnk->bn" => einsum_engine!((2, 3, 2), "bk,bnk->bn"),
        "bsmk,btkn->bsmtn" => einsum_engine!((4, 4, 5), "bsmk,btkn->bsmtn"),
        other => bail!("{other} is not written here"),
    }
}

fn candle_engine(case: &Case, [lhs, rhs]: [Vec<u8>; 2]) -> Result<Loaded> {
    let dtype = match case.dtype {
        Dtype::F32 => candle::DType::F32,
        Dtype::F16 => candle::DType::F16,
        Dtype::BF16 => candle::DType::BF16,
        Dtype::F64 => candle::DType::F64,
    };
    let tensor = |bytes: &[u8], shape: &[usize]| candle::Tensor::from_raw_buffer(bytes, dtype, shape, &candle::Device::Cpu);
    let (x, y) = (tensor(&lhs, &case.lhs)?, tensor(&rhs, &case.rhs)?);
    let leaves = (candle::Var::from_tensor(&x)?, candle::Var::from_tensor(&y)?);
    let case = case.clone();
    let product = move |x: &candle::Tensor, y: &candle::Tensor| candle_product(&case, x, y);
    let forward = {
        let product = product.clone();
        move || product(&x, &y)
    };
    let both = move || -> candle::Result<_> {
        let out = product(&leaves.0, &leaves.1)?;
        let mut grads = out.backward()?;
        Ok((out, grads.remove(&leaves.0), grads.remove(&leaves.1)))
    };
    let mut results = vec![raw(&forward()?)?];
    let gradients = both();
    let note = gradients.as_ref().err().map(|reason| format!("no gradients: {reason}"));
    if let Ok((_, Some(grad_x), Some(grad_y))) = &gradients {
        results.extend([raw(grad_x)?, raw(grad_y)?]);
    }
    let backward: Box<dyn FnMut()> = Box::new(move || drop(black_box(both().expect("it worked once"))));
    let forward = Box::new(move || drop(black_box(forward().expect("it worked once"))));
    Ok(Loaded { forward, backward: (results.len() == 3).then_some(backward), results, note })
}

fn candle_product(case: &Case, x: &candle::Tensor, y: &candle::Tensor) -> candle::Result<candle::Tensor> {
    let unit = |x: &candle::Tensor, axis: usize| match case.normalize {
        true => x.broadcast_div(&x.sqr()?.sum_keepdim(axis)?.sqrt()?.maximum(EPSILON)?),
        false => Ok(x.clone()),
    };
    let (x, y) = (unit(x, case.axes.0)?, unit(y, case.axes.1)?);
    match &case.einsum[..] {
        "bk,bk->b" => (x * y)?.sum_keepdim(1),
        "bmk,bnk->bmn" => x.matmul(&y.transpose(1, 2)?),
        "bkm,bnk->bmn" => x.transpose(1, 2)?.matmul(&y.transpose(1, 2)?),
        "bkm,bkn->bmn" => x.transpose(1, 2)?.matmul(&y),
        "mk,nk->mn" => x.matmul(&y.t()?),
        "bk,bnk->bn" => x.unsqueeze(1)?.matmul(&y.transpose(1, 2)?)?.squeeze(1),
        "bsmk,btkn->bsmtn" => {
            let ((b, s, m, k), (_, t, _, n)) = (x.dims4()?, y.dims4()?);
            let y = y.transpose(1, 2)?.reshape((b, k, t * n))?;
            x.reshape((b, s * m, k))?.matmul(&y)?.reshape(&[b, s, m, t, n][..])
        }
        other => candle::bail!("{other} is not written here"),
    }
}

fn raw(x: &candle::Tensor) -> candle::Result<Vec<u8>> {
    let x = x.flatten_all()?;
    Ok(match x.dtype() {
        candle::DType::F32 => worker::bytes(&x.to_vec1::<f32>()?),
        candle::DType::F64 => worker::bytes(&x.to_vec1::<f64>()?),
        candle::DType::F16 => worker::bytes(&x.to_vec1::<burn::tensor::f16>()?),
        _ => worker::bytes(&x.to_vec1::<burn::tensor::bf16>()?),
    })
}

/// ndarray has no gradients; its loops are written out, over threads by its own rayon or over batches.
fn ndarray_engine<T>(case: &Case, [lhs, rhs]: [Vec<u8>; 2], sqrt: fn(T) -> T, epsilon: T) -> Result<Loaded>
where
    T: LinalgScalar + PartialOrd + Pod + Send + Sync,
{
    let array = |bytes: &[u8], shape: &[usize]| ArrayD::from_shape_vec(shape, worker::elements::<T>(bytes));
    let (x, y, case) = (array(&lhs, &case.lhs)?, array(&rhs, &case.rhs)?, case.clone());
    let unit = move |x: &ArrayD<T>, axis: usize| {
        let floored = |norm: T| if norm > epsilon { norm } else { epsilon };
        x / &x.map_axis(Axis(axis), |x| floored(sqrt(x.dot(&x)))).insert_axis(Axis(axis))
    };
    let forward = move || match case.normalize {
        true => ndarray_product(&case, &unit(&x, case.axes.0), &unit(&y, case.axes.1)),
        false => ndarray_product(&case, &x, &y),
    };
    let results = vec![worker::bytes(&forward())];
    Ok(Loaded {
        forward: Box::new(move || drop(black_box(forward()))),
        backward: None,
        results,
        note: Some("no gradients".into()),
    })
}

fn ndarray_product<T: LinalgScalar + Send + Sync>(case: &Case, x: &ArrayD<T>, y: &ArrayD<T>) -> Vec<T> {
    let (left, right) = case.sides();
    let (m, n) = (left.free(), right.free());
    let mut out = vec![T::zero(); left.batch * m * n];
    if case.kind == Kind::Row {
        let (x, y) = (x.view().into_dimensionality::<Ix2>(), y.view().into_dimensionality::<Ix2>());
        let (x, y) = (x.expect("rows have rank 2"), y.expect("rows have rank 2"));
        let out = ndarray::aview_mut1(&mut out[..]);
        Zip::from(out).and(x.rows()).and(y.rows()).par_for_each(|out, x, y| *out = x.dot(&y));
    } else {
        let (x, y) = (x.as_slice().expect("contiguous"), y.as_slice().expect("contiguous"));
        // Few batches leave threads idle, so each batch is cut into bands of rows, where its rows are one matrix.
        let bands = if left.matrices().blocks == 1 { rayon::current_num_threads().div_ceil(left.batch).min(m) } else { 1 };
        let rows = m.div_ceil(bands);
        let tasks = out
            .chunks_mut(m * n)
            .enumerate()
            .flat_map(|(batch, out)| out.chunks_mut(rows * n).enumerate().map(move |(band, out)| (batch, band * rows, out)));
        tasks.collect::<Vec<_>>().into_par_iter().for_each(|(batch, first, out)| {
            let mut out = ArrayViewMut2::from_shape((out.len() / n, n), out).expect("the shape of a band");
            let band = first..first + out.nrows();
            for (i, x) in blocks(&left, x, batch).enumerate() {
                let x = if bands > 1 { x.slice_move(s![band.clone(), ..]) } else { x };
                for (j, y) in blocks(&right, y, batch).enumerate() {
                    let (i, j) = (i * x.nrows(), j * y.nrows());
                    let mut out = out.slice_mut(s![i..i + x.nrows(), j..j + y.nrows()]);
                    general_mat_mul(T::one(), &x, &y.t(), T::zero(), &mut out);
                }
            }
        });
    }
    out
}

/// The matrices `(free, k)` of one batch, without a copy: one, or one for each outer index.
fn blocks<'a, T>(side: &Side, data: &'a [T], batch: usize) -> impl Iterator<Item = ArrayView2<'a, T>> {
    let at = side.matrices();
    (0..at.blocks).map(move |block| {
        let shape = (at.free, at.k).strides((at.free_stride, at.k_stride));
        ArrayView2::from_shape(shape, &data[batch * at.batch_stride + block * at.block_stride..]).expect("within the data")
    })
}
