//! A yardstick for rows: bare loops that read and write what must be read and written, into memory that is reused between calls,
//! which no library can do.

use std::{
    cell::RefCell,
    marker::PhantomData,
    ops::{Add, Div, Mul, Sub},
    rc::Rc,
};

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use anyhow::{Result, bail};
use burn::tensor::{bf16, f16};
use rayon::prelude::*;

use crate::cells::{Case, Dtype, FLOOR, Kind};
use crate::worker::{Loaded, bytes, fastest_of, numbers};

pub fn load(case: &Case, inputs: [Vec<u8>; 2]) -> Result<Loaded> {
    match (case.kind, case.dtype) {
        (Kind::Gemm, _) => bail!("for rows and matvec only"),
        (_, Dtype::F32) => Ok(limit::<f32>(case, inputs)),
        #[cfg(target_arch = "x86_64")]
        (_, Dtype::F16) if !is_x86_feature_detected!("f16c") => bail!("no instructions for f16 here"),
        (_, Dtype::F16) => Ok(limit::<f16>(case, inputs)),
        (_, Dtype::BF16) => Ok(limit::<bf16>(case, inputs)),
        (_, Dtype::F64) => Ok(limit::<f64>(case, inputs)),
    }
}

/// What sums are made in: f32 or f64.
trait Sum:
    Copy + Default + Send + Sync + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    const ONE: Self;
    /// The norm of this square, not below the floor.
    fn norm(self) -> Self;
}

/// A number in memory. The conversions are plain arithmetic, so that the compiler makes vectors of them.
trait Number: Copy + Default + Send + Sync + 'static {
    type Sum: Sum;
    fn up(self) -> Self::Sum;
    fn down(sum: Self::Sum) -> Self;

    #[inline(always)]
    fn up_all<const W: usize>(x: &[Self; W]) -> [Self::Sum; W] {
        let mut wide = [Self::Sum::default(); W];
        // Plain loops here: `map` would be compiled by itself, without the wide vectors.
        for i in 0..W {
            wide[i] = x[i].up();
        }
        wide
    }

    #[inline(always)]
    fn down_all<const W: usize>(sums: [Self::Sum; W]) -> [Self; W] {
        let mut narrow = [Self::default(); W];
        for i in 0..W {
            narrow[i] = Self::down(sums[i]);
        }
        narrow
    }
}

macro_rules! full_precision {
    ($type:ty) => {
        impl Sum for $type {
            const ONE: Self = 1.0;
            fn norm(self) -> Self {
                self.sqrt().max(FLOOR as $type)
            }
        }
        impl Number for $type {
            type Sum = $type;
            #[inline(always)]
            fn up(self) -> $type {
                self
            }
            #[inline(always)]
            fn down(sum: $type) -> $type {
                sum
            }
        }
    };
}
full_precision!(f32);
full_precision!(f64);

/// The upper 16 bits, rounded to even; NaN is not looked for.
#[inline(always)]
fn round_off(bits: u32, dropped: u32) -> u32 {
    (bits + ((1 << (dropped - 1)) - 1) + (bits >> dropped & 1)) >> dropped
}

impl Number for bf16 {
    type Sum = f32;
    #[inline(always)]
    fn up(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn down(sum: f32) -> bf16 {
        bf16::from_bits(round_off(sum.to_bits(), 16) as u16)
    }
}

/// By the instructions for it, where there are such; `load` has looked.
impl Number for f16 {
    type Sum = f32;
    #[inline(always)]
    fn up(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn down(sum: f32) -> f16 {
        f16::from_f32(sum)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn up_all<const W: usize>(x: &[f16; W]) -> [f32; W] {
        let mut wide = [0.0; W];
        for (wide, x) in wide.as_chunks_mut::<8>().0.iter_mut().zip(x.as_chunks::<8>().0) {
            // SAFETY: both hold 8 numbers; the machine has F16C.
            unsafe { _mm256_storeu_ps(wide.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast()))) }
        }
        wide
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn down_all<const W: usize>(sums: [f32; W]) -> [f16; W] {
        let mut narrow = [f16::ZERO; W];
        for (narrow, sums) in narrow.as_chunks_mut::<8>().0.iter_mut().zip(sums.as_chunks::<8>().0) {
            // SAFETY: both hold 8 numbers; the machine has F16C.
            unsafe { _mm_storeu_si128(narrow.as_mut_ptr().cast(), _mm256_cvtps_ph::<0>(_mm256_loadu_ps(sums.as_ptr()))) }
        }
        narrow
    }
}

/// Memory that begins at a cache line.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Line {
    _numbers: [u64; 8],
}

struct Buffer<T> {
    lines: Vec<Line>,
    len: usize,
    numbers: PhantomData<T>,
}

impl<T: Number> Buffer<T> {
    fn new(numbers: &[T]) -> Self {
        let mut buffer =
            Self { lines: vec![Line::default(); size_of_val(numbers).div_ceil(64)], len: numbers.len(), numbers: PhantomData };
        buffer.all().copy_from_slice(numbers);
        buffer
    }

    fn all(&mut self) -> &mut [T] {
        // SAFETY: the lines hold `len` numbers, and every bit pattern is a float.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast::<T>(), self.len) }
    }
}

/// `x: (batch, k)` times `y: (batch, n, k)`; rows are n = 1.
struct Rows<T: Number> {
    n: usize,
    k: usize,
    x: Buffer<T>,
    y: Buffer<T>,
    ones: Buffer<T>,
    out: Buffer<T>,
    norms_x: Vec<T::Sum>,
    norms_y: Vec<T::Sum>,
    grad_x: Buffer<T>,
    grad_y: Buffer<T>,
}

/// Some batches of it, for one thread.
struct Part<'a, T: Number> {
    n: usize,
    k: usize,
    x: &'a [T],
    y: &'a [T],
    ones: &'a [T],
    out: &'a mut [T],
    norms_x: &'a mut [T::Sum],
    norms_y: &'a mut [T::Sum],
    grad_x: &'a mut [T],
    grad_y: &'a mut [T],
}

#[derive(Clone, Copy)]
struct Pass {
    normalize: bool,
    backward: bool,
    /// Whether gradients go past the caches: faster when they would not stay there anyway.
    stream: bool,
    threads: usize,
}

fn limit<T: Number>(case: &Case, inputs: [Vec<u8>; 2]) -> Loaded {
    let (left, right) = case.sides();
    let (n, k, batch) = (right.free(), right.k, left.batch);
    let of = |len| Buffer::new(&vec![T::default(); len]);
    let rows = Rows::<T> {
        n,
        k,
        x: Buffer::new(&numbers(&inputs[0])),
        y: Buffer::new(&numbers(&inputs[1])),
        ones: Buffer::new(&vec![T::down(T::Sum::ONE); batch * n]),
        out: of(batch * n),
        norms_x: vec![T::Sum::ONE; batch],
        norms_y: vec![T::Sum::ONE; batch * n],
        grad_x: of(batch * k),
        grad_y: of(batch * n * k),
    };
    let rows = Rc::new(RefCell::new(rows));
    let way = |name, backward, stream, threads| {
        let (rows, pass) = (rows.clone(), Pass { normalize: case.normalize, backward, stream, threads });
        (name, Box::new(move || rows.borrow_mut().run(pass)) as Box<dyn FnMut()>)
    };
    let all = rayon::current_num_threads();
    let forward = vec![way("one thread", false, false, 1), way("all threads", false, false, all)];
    let backward = [("one thread", false, 1), ("one thread, past the caches", true, 1)];
    let backward = backward.into_iter().chain([("all threads", false, all), ("all threads, past the caches", true, all)]);
    let backward = backward.map(|(name, stream, threads)| way(name, true, stream, threads)).collect();
    fastest_of(forward, backward, || {
        let mut rows = rows.borrow_mut();
        let Rows { out, grad_x, grad_y, .. } = &mut *rows;
        [out, grad_x, grad_y].map(|buffer| bytes(buffer.all())).to_vec()
    })
}

impl<T: Number> Rows<T> {
    fn run(&mut self, pass: Pass) {
        let (n, k) = (self.n, self.k);
        let batches = self.norms_x.len().div_ceil(pass.threads);
        let (x, y, ones) =
            (self.x.all().chunks(batches * k), self.y.all().chunks(batches * n * k), self.ones.all().chunks(batches * n));
        let outs = self
            .out
            .all()
            .chunks_mut(batches * n)
            .zip(self.norms_x.chunks_mut(batches))
            .zip(self.norms_y.chunks_mut(batches * n));
        let grads = self.grad_x.all().chunks_mut(batches * k).zip(self.grad_y.all().chunks_mut(batches * n * k));
        let parts = x.zip(y).zip(ones).zip(outs).zip(grads);
        let parts = parts.map(|((((x, y), ones), ((out, norms_x), norms_y)), (grad_x, grad_y))| Part {
            n,
            k,
            x,
            y,
            ones,
            out,
            norms_x,
            norms_y,
            grad_x,
            grad_y,
        });
        if pass.threads == 1 {
            parts.for_each(|part| part.vectorised(pass));
        } else {
            parts.collect::<Vec<_>>().into_par_iter().for_each(|part| part.vectorised(pass));
        }
    }
}

impl<T: Number> Part<'_, T> {
    /// The same loops, compiled for the widest vectors that this machine has.
    fn vectorised(self, pass: Pass) {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
        #[cfg(target_arch = "x86_64")]
        fn avx512<T: Number>(part: Part<T>, pass: Pass) {
            part.passes(pass)
        }
        #[target_feature(enable = "avx2,f16c")]
        #[cfg(target_arch = "x86_64")]
        fn avx2<T: Number>(part: Part<T>, pass: Pass) {
            part.passes(pass)
        }
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("f16c") {
            // SAFETY: the features are there.
            return unsafe { avx512(self, pass) };
        } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
            // SAFETY: the feature is there.
            return unsafe { avx2(self, pass) };
        }
        self.passes(pass)
    }

    #[inline(always)]
    fn passes(self, pass: Pass) {
        match (self.k >= 32, pass.normalize) {
            (true, true) => self.passes_by::<32, true>(pass),
            (true, false) => self.passes_by::<32, false>(pass),
            (false, true) => self.passes_by::<8, true>(pass),
            (false, false) => self.passes_by::<8, false>(pass),
        }
    }

    #[inline(always)]
    fn passes_by<const W: usize, const NORMALIZE: bool>(mut self, pass: Pass) {
        self.forward::<W, NORMALIZE>();
        if pass.backward {
            match pass.stream {
                true => self.backward::<W, NORMALIZE, true>(),
                false => self.backward::<W, NORMALIZE, false>(),
            }
        }
    }

    #[inline(always)]
    fn forward<const W: usize, const NORMALIZE: bool>(&mut self) {
        let (n, k) = (self.n, self.k);
        for (batch, x) in self.x.chunks_exact(k).enumerate() {
            for (row, y) in self.y[batch * n * k..].chunks_exact(k).take(n).enumerate() {
                let at = batch * n + row;
                let [xy, xx, yy] = sums::<T, W, NORMALIZE>(x, y);
                let mut out = xy;
                if NORMALIZE {
                    (self.norms_x[batch], self.norms_y[at]) = (xx.norm(), yy.norm());
                    out = xy / (self.norms_x[batch] * self.norms_y[at]);
                }
                self.out[at] = T::down(out);
            }
        }
    }

    /// `grad_x = Σ g/(‖x‖‖y‖) y − x Σ g c/‖x‖²`, `grad_y = g/(‖x‖‖y‖) x − g c/‖y‖² y`; c is the output.
    #[inline(always)]
    fn backward<const W: usize, const NORMALIZE: bool, const STREAM: bool>(&mut self) {
        let (n, k) = (self.n, self.k);
        let mut sum = vec![T::Sum::default(); if n > 1 { k } else { 0 }];
        for (batch, x) in self.x.chunks_exact(k).enumerate() {
            let (norm_x, grad_x) = (self.norms_x[batch], &mut self.grad_x[batch * k..][..k]);
            let mut along = T::Sum::default();
            for row in 0..n {
                let at = batch * n + row;
                let (y, grad_y, norm_y) = (&self.y[at * k..][..k], &mut self.grad_y[at * k..][..k], self.norms_y[at]);
                let (g, c) = (self.ones[at].up(), self.out[at].up());
                let cross = g / (norm_x * norm_y);
                along = along + g * c;
                blend::<T, W, NORMALIZE, STREAM>(grad_y, cross, x, g * c / (norm_y * norm_y), y);
                if n == 1 {
                    blend::<T, W, NORMALIZE, STREAM>(grad_x, cross, y, along / (norm_x * norm_x), x);
                } else {
                    for (sum, y) in sum.iter_mut().zip(y) {
                        *sum = *sum + cross * y.up();
                    }
                }
            }
            let back = if NORMALIZE { along / (norm_x * norm_x) } else { T::Sum::default() };
            for ((grad, sum), x) in grad_x.iter_mut().zip(&mut sum).zip(x) {
                *grad = T::down(*sum - back * x.up());
                *sum = T::Sum::default();
            }
        }
        #[cfg(target_arch = "x86_64")]
        if STREAM {
            // SAFETY: every x86-64 has it.
            unsafe { _mm_sfence() };
        }
    }
}

/// `[x·y, x·x, y·y]`, in W lanes; the squares only where they are needed.
#[inline(always)]
fn sums<T: Number, const W: usize, const SQUARES: bool>(x: &[T], y: &[T]) -> [T::Sum; 3] {
    let mut sums = [[T::Sum::default(); W]; 3];
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<W>(), y.as_chunks::<W>());
    for (x, y) in x.iter().zip(y) {
        add::<T, W, SQUARES>(&mut sums, x, y);
    }
    if !x_rest.is_empty() {
        // Filled up with zeros: an index that varies would keep the sums out of the registers.
        let (mut x, mut y) = ([T::default(); W], [T::default(); W]);
        x[..x_rest.len()].copy_from_slice(x_rest);
        y[..y_rest.len()].copy_from_slice(y_rest);
        add::<T, W, SQUARES>(&mut sums, &x, &y);
    }
    [total(sums[0]), total(sums[1]), total(sums[2])]
}

#[inline(always)]
fn add<T: Number, const W: usize, const SQUARES: bool>(sums: &mut [[T::Sum; W]; 3], x: &[T; W], y: &[T; W]) {
    let (x, y) = (T::up_all(x), T::up_all(y));
    for i in 0..W {
        let (x, y) = (x[i], y[i]);
        sums[0][i] = sums[0][i] + x * y;
        if SQUARES {
            sums[1][i] = sums[1][i] + x * x;
            sums[2][i] = sums[2][i] + y * y;
        }
    }
}

/// By halves, as vectors add.
#[inline(always)]
fn total<S: Sum, const W: usize>(mut lanes: [S; W]) -> S {
    let mut width = W;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            lanes[i] = lanes[i] + lanes[i + width];
        }
    }
    lanes[0]
}

/// `out = a x − b y`, or `a x`.
#[inline(always)]
fn blend<T: Number, const W: usize, const BOTH: bool, const STREAM: bool>(
    out: &mut [T],
    a: T::Sum,
    x: &[T],
    b: T::Sum,
    y: &[T],
) {
    let one = |x: T::Sum, y: T::Sum| if BOTH { a * x - b * y } else { a * x };
    let ((out, out_rest), (x, x_rest), (y, y_rest)) = (out.as_chunks_mut::<W>(), x.as_chunks::<W>(), y.as_chunks::<W>());
    for ((out, x), y) in out.iter_mut().zip(x).zip(y) {
        let (mut part, y) = (T::up_all(x), T::up_all(y));
        for i in 0..W {
            part[i] = one(part[i], y[i]);
        }
        let part = T::down_all(part);
        if STREAM { past_the_caches(out, &part) } else { *out = part }
    }
    for ((out, &x), &y) in out_rest.iter_mut().zip(x_rest).zip(y_rest) {
        *out = T::down(one(x.up(), y.up()));
    }
}

#[inline(always)]
fn past_the_caches<T: Number, const W: usize>(to: &mut [T; W], from: &[T; W]) {
    #[cfg(target_arch = "x86_64")]
    if to.as_ptr().addr().is_multiple_of(16) && size_of::<[T; W]>().is_multiple_of(16) {
        for i in 0..size_of::<[T; W]>() / 16 {
            // SAFETY: both have that many times 16 bytes, and `to` is aligned.
            unsafe {
                _mm_stream_si128(
                    to.as_mut_ptr().cast::<__m128i>().add(i),
                    _mm_loadu_si128(from.as_ptr().cast::<__m128i>().add(i)),
                )
            }
        }
        return;
    }
    *to = *from;
}
