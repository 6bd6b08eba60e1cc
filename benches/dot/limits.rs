//! Yardsticks: bare loops that read and write what must be read and written, and the `gemm` crate alone. Their outputs are
//! reused between calls, which no library can do.

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
use gemm::Parallelism;
use rayon::prelude::*;

use crate::cells::{Case, Dtype, FLOOR, Kind, Matrices};
use crate::worker::{Loaded, time};

pub fn load(engine: &str, case: &Case, inputs: [Vec<u8>; 2]) -> Result<Loaded> {
    match (engine, case.kind, case.dtype) {
        ("limit", Kind::Gemm, _) => bail!("for rows and matvec only"),
        ("limit", _, Dtype::F32) => Ok(limit::<f32>(case, inputs)),
        #[cfg(target_arch = "x86_64")]
        ("limit", _, Dtype::F16) if !is_x86_feature_detected!("f16c") => bail!("no instructions for f16 here"),
        ("limit", _, Dtype::F16) => Ok(limit::<f16>(case, inputs)),
        ("limit", _, Dtype::BF16) => Ok(limit::<bf16>(case, inputs)),
        ("limit", _, Dtype::F64) => Ok(limit::<f64>(case, inputs)),
        ("gemm", Kind::Gemm, Dtype::F32) => Ok(products::<f32>(case, inputs, [0.0, 1.0])),
        ("gemm", Kind::Gemm, Dtype::F16) => Ok(products(case, inputs, [f16::ZERO, f16::ONE])),
        ("gemm", Kind::Gemm, dtype) => bail!("no {}", dtype.name()),
        _ => bail!("for products of matrices only"),
    }
}

/// The numbers of raw bytes.
pub fn numbers<T: Copy>(bytes: &[u8]) -> Vec<T> {
    let all = bytes.chunks_exact(size_of::<T>());
    // SAFETY: called for float types only, of which every bit pattern is a value.
    all.map(|bytes| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }).collect()
}

/// The raw bytes of numbers.
pub fn bytes<T: Copy>(numbers: &[T]) -> Vec<u8> {
    // SAFETY: called for float types only, which have no padding.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast::<u8>(), size_of_val(numbers)) }.to_vec()
}

/// The ways of one pass, by name, and the fastest of them; a bound must not depend on a guess.
type Way = (&'static str, Box<dyn FnMut()>);

fn fastest(ways: Vec<Way>) -> Way {
    let mut timed: Vec<(f64, Way)> = ways.into_iter().map(|way| (f64::INFINITY, way)).collect();
    for _ in 0..5 {
        timed.iter_mut().for_each(|(best, way)| *best = best.min(time(&mut way.1, 0.005)));
    }
    timed.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).expect("there is a way").1
}

fn loaded(forward: Vec<Way>, backward: Vec<Way>, results: impl FnOnce() -> Vec<Vec<u8>>) -> Loaded {
    let ((way, mut forward), (way_back, mut backward)) = (fastest(forward), fastest(backward));
    forward();
    backward();
    let note = Some(format!("forward: {way}; both: {way_back}"));
    Loaded { forward, backward: Some(backward), results: results(), note }
}

// --- Memory ----------------------------------------------------------------------------------------------------------------

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
    loaded(forward, backward, || {
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

// --- Matrix products -------------------------------------------------------------------------------------------------------

/// Where a matrix begins, and its strides by row and column.
type View = (usize, usize, usize);

/// `dst (+)= lhs · rhs`
struct Product {
    sizes: (usize, usize, usize),
    dst: View,
    lhs: View,
    rhs: View,
    add: bool,
}

/// Products that add to the same matrix, to be made one after the other.
type Unit = Vec<Product>;

struct Gemm<T> {
    /// Output and gradients.
    units: [Vec<Unit>; 3],
    lhs: Vec<T>,
    rhs: Vec<T>,
    ones: Vec<T>,
    results: [Vec<T>; 3],
    constants: [T; 2],
}

fn products<T: Copy + Send + Sync + 'static>(case: &Case, inputs: [Vec<u8>; 2], constants: [T; 2]) -> Loaded {
    let (left, right) = case.sides();
    let out = left.batch * left.free() * right.free();
    let [lhs, rhs] = [numbers::<T>(&inputs[0]), numbers::<T>(&inputs[1])];
    let results = [vec![constants[0]; out], lhs.clone(), rhs.clone()];
    let units = plan(left.batch, &left.matrices(), &right.matrices());
    let gemm = Rc::new(RefCell::new(Gemm { units, lhs, rhs, ones: vec![constants[1]; out], results, constants }));
    let way = |name, passes: usize, batches: bool, inside: Parallelism| {
        let gemm = gemm.clone();
        (name, Box::new(move || (0..passes).for_each(|pass| gemm.borrow_mut().run(pass, batches, inside))) as Box<dyn FnMut()>)
    };
    let ways = |passes| {
        vec![
            way("threads over the batch", passes, true, Parallelism::None),
            way("threads within each product", passes, false, Parallelism::Rayon(0)),
            way("one thread", passes, false, Parallelism::None),
        ]
    };
    loaded(ways(1), ways(3), || gemm.borrow().results.iter().map(|result| bytes(result)).collect())
}

fn plan(batches: usize, left: &Matrices, right: &Matrices) -> [Vec<Unit>; 3] {
    let (m, n, k) = (left.free, right.free, left.k);
    let columns = right.blocks * n;
    let mut units = [vec![], vec![], vec![]];
    for batch in 0..batches {
        let lhs = |i: usize| (batch * left.batch_stride + i * left.block_stride, left.free_stride, left.k_stride);
        let rhs = |j: usize| (batch * right.batch_stride + j * right.block_stride, right.free_stride, right.k_stride);
        let out = |i: usize, j: usize| ((batch * left.blocks + i) * m * columns + j * n, columns, 1);
        for i in 0..left.blocks {
            for j in 0..right.blocks {
                units[0].push(vec![Product { sizes: (m, n, k), dst: out(i, j), lhs: lhs(i), rhs: turned(rhs(j)), add: false }]);
            }
            let product = |j| Product { sizes: (m, k, n), dst: lhs(i), lhs: out(i, j), rhs: rhs(j), add: j > 0 };
            units[1].push((0..right.blocks).map(product).collect());
        }
        for j in 0..right.blocks {
            let product = |i| Product { sizes: (n, k, m), dst: rhs(j), lhs: turned(out(i, j)), rhs: lhs(i), add: i > 0 };
            units[2].push((0..left.blocks).map(product).collect());
        }
    }
    units
}

fn turned((at, rows, columns): View) -> View {
    (at, columns, rows)
}

impl<T: Copy + Send + Sync + 'static> Gemm<T> {
    /// Pass 0 is the output, 1 and 2 are the gradients.
    fn run(&mut self, pass: usize, batches: bool, inside: Parallelism) {
        let (lhs, rhs) = [(&self.lhs, &self.rhs), (&self.ones, &self.rhs), (&self.ones, &self.lhs)][pass];
        let ([zero, one], dst) = (self.constants, Shared(self.results[pass].as_mut_ptr()));
        let make = |unit: &Unit| {
            let dst = &dst;
            for &Product { sizes: (m, n, k), dst: to, lhs: a, rhs: b, add } in unit {
                let (step, alpha) = (|stride: usize| stride as isize, if add { one } else { zero });
                // SAFETY: `plan` keeps every view within its array, and no two units write to the same matrix.
                unsafe {
                    let (to_at, a_at, b_at) = (dst.0.add(to.0), lhs.as_ptr().add(a.0), rhs.as_ptr().add(b.0));
                    let (to, a, b) = ((step(to.2), step(to.1)), (step(a.2), step(a.1)), (step(b.2), step(b.1)));
                    gemm::gemm(
                        m, n, k, to_at, to.0, to.1, add, a_at, a.0, a.1, b_at, b.0, b.1, alpha, one, false, false, false,
                        inside,
                    );
                }
            }
        };
        if batches { self.units[pass].par_iter().for_each(make) } else { self.units[pass].iter().for_each(make) }
    }
}

/// A pointer that threads may share, each writing to matrices of its own.
struct Shared<T>(*mut T);
// SAFETY: see `Gemm::run`.
unsafe impl<T: Send> Sync for Shared<T> {}
