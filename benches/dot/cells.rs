//! What is measured: the cells, their inputs, and the bytes that each must move.

use burn::tensor::{DType, bf16, f16};
use clap::ValueEnum;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};

use crate::worker::Pass;

/// The smallest norm divided by; tf.keras' default, and `Dot`'s.
pub const EPSILON: f64 = 1e-6;

/// Below so many operations per byte of its inputs and output, a product waits for memory: no current CPU has as little arithmetic.
const MEMORY_BOUND: f64 = 4.0;

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    F32,
    F16,
    BF16,
    F64,
}

impl Dtype {
    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    pub fn burn(self) -> DType {
        match self {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            Dtype::F64 => DType::F64,
        }
    }

    fn encode(self, x: f64) -> Vec<u8> {
        match self {
            Dtype::F32 => (x as f32).to_le_bytes().to_vec(),
            Dtype::F16 => f16::from_f64(x).to_le_bytes().to_vec(),
            Dtype::BF16 => bf16::from_f64(x).to_le_bytes().to_vec(),
            Dtype::F64 => x.to_le_bytes().to_vec(),
        }
    }

    pub fn decode(self, bytes: &[u8]) -> Vec<f64> {
        fn each<const N: usize>(bytes: &[u8], element: fn([u8; N]) -> f64) -> Vec<f64> {
            bytes.as_chunks::<N>().0.iter().map(|&bytes| element(bytes)).collect()
        }
        match self {
            Dtype::F32 => each(bytes, |x| f32::from_le_bytes(x).into()),
            Dtype::F16 => each(bytes, |x| f16::from_le_bytes(x).to_f64()),
            Dtype::BF16 => each(bytes, |x| bf16::from_le_bytes(x).to_f64()),
            Dtype::F64 => each(bytes, f64::from_le_bytes),
        }
    }

    fn bytes(self) -> usize {
        self.encode(0.0).len()
    }

    /// Allowed error of a sum of so many terms, relative to the sum of their absolute values. It grows as rounding does in a sum of
    /// terms one after the other. In f16 and bf16 it leaves room for engines that round between steps, not for sums in f16.
    pub fn tolerance(self, terms: usize) -> f64 {
        let steps = (4.0 * (terms as f64).sqrt()).max(64.0);
        match self {
            Dtype::F32 => steps * f64::from(f32::EPSILON),
            Dtype::F64 => steps * f64::EPSILON,
            Dtype::F16 => 8.0 * f16::EPSILON.to_f64(),
            Dtype::BF16 => 8.0 * bf16::EPSILON.to_f64(),
        }
    }
}

/// What shape of product it is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Row,
    Matvec,
    Matmul,
}

/// One product to measure; workers get it as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Case {
    pub cell: String,
    pub kind: Kind,
    pub dtype: Dtype,
    pub normalize: bool,
    pub lhs: Vec<usize>,
    pub rhs: Vec<usize>,
    pub axes: (usize, usize),
    pub batch_dims: usize,
    /// The plain product in the notation of Einstein sums, for other engines; rows give `b`, to be reshaped to `(b, 1)`.
    pub einsum: String,
}

impl Case {
    pub fn title(&self) -> String {
        let dtype = if self.dtype == Dtype::F32 { String::new() } else { format!(" {}", self.dtype.name()) };
        format!("{}{dtype}{}", self.cell, if self.normalize { ", normalised" } else { "" })
    }

    pub fn sides(&self) -> (Side, Side) {
        (Side::new(&self.lhs, self.axes.0, self.batch_dims), Side::new(&self.rhs, self.axes.1, self.batch_dims))
    }

    /// The bytes of both inputs, and those of the output.
    fn sizes(&self) -> (usize, usize) {
        let (left, right) = self.sides();
        let elements = |shape: &[usize]| shape.iter().product::<usize>();
        let out = left.batch * left.free() * right.free();
        (self.dtype.bytes() * (elements(&self.lhs) + elements(&self.rhs)), self.dtype.bytes() * out)
    }

    /// Multiplications and additions of the products; with gradients there are three.
    pub fn operations(&self, pass: Pass) -> usize {
        let (left, right) = self.sides();
        2 * left.batch * left.free() * right.free() * left.k * if pass == Pass::Forward { 1 } else { 3 }
    }

    pub fn is_memory_bound(&self) -> bool {
        let (inputs, out) = self.sizes();
        (self.operations(Pass::Forward) as f64) < MEMORY_BOUND * (inputs + out) as f64
    }

    /// The memory that a pass touches: inputs and output; with gradients also these and the output's gradient.
    pub fn working_set(&self, pass: Pass) -> usize {
        let (inputs, out) = self.sizes();
        if pass == Pass::Forward { inputs + out } else { 2 * inputs + 2 * out }
    }

    /// The least that a pass reads and writes. The backward pass reads the inputs once more: the output's gradient is known only
    /// when the forward pass is over.
    pub fn bytes_moved(&self, pass: Pass) -> usize {
        let (inputs, _) = self.sizes();
        self.working_set(pass) + if pass == Pass::Forward { 0 } else { inputs }
    }
}

/// Name, kind, shapes, axes, leading axes that are batches, Einstein sum, dtypes.
type Row = (&'static str, Kind, &'static [usize], &'static [usize], (usize, usize), usize, &'static str, &'static [Dtype]);

const F32: &[Dtype] = &[Dtype::F32];
const HALVES: &[Dtype] = &[Dtype::F32, Dtype::F16, Dtype::BF16];
const ALL: &[Dtype] = &[Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64];
const CELLS: &[Row] = &[
    ("row-small", Kind::Row, &[32, 8], &[32, 8], (1, 1), 1, "bk,bk->b", F32),
    ("row-1k", Kind::Row, &[1024, 64], &[1024, 64], (1, 1), 1, "bk,bk->b", F32),
    ("row-4k", Kind::Row, &[4096, 512], &[4096, 512], (1, 1), 1, "bk,bk->b", ALL),
    ("row-64k", Kind::Row, &[65536, 128], &[65536, 128], (1, 1), 1, "bk,bk->b", F32),
    ("matvec", Kind::Matvec, &[256, 128], &[256, 200, 128], (1, 2), 1, "bk,bnk->bn", F32),
    ("long-k", Kind::Matmul, &[1, 1 << 20, 8], &[1, 1 << 20, 8], (1, 1), 1, "bkm,bkn->bmn", F32),
    ("attn", Kind::Matmul, &[32, 128, 64], &[32, 128, 64], (2, 2), 1, "bmk,bnk->bmn", &[Dtype::F32, Dtype::F16, Dtype::BF16]),
    ("transposed", Kind::Matmul, &[64, 128, 96], &[64, 80, 128], (1, 2), 1, "bkm,bnk->bmn", F32),
    ("mid-4d", Kind::Matmul, &[8, 16, 32, 24], &[8, 12, 24, 20], (3, 2), 1, "bsmk,btkn->bsmtn", F32),
    ("big-gemm", Kind::Matmul, &[4, 512, 512], &[4, 512, 512], (2, 2), 1, "bmk,bnk->bmn", F32),
    ("pairs-64", Kind::Matmul, &[64, 768], &[64, 768], (1, 1), 0, "mk,nk->mn", F32),
    ("pairs-128", Kind::Matmul, &[128, 512], &[128, 512], (1, 1), 0, "mk,nk->mn", F32),
    ("pairs-512", Kind::Matmul, &[512, 512], &[512, 512], (1, 1), 0, "mk,nk->mn", F32),
    ("pairs-100k", Kind::Matmul, &[256, 128], &[100_000, 128], (1, 1), 0, "mk,nk->mn", F32),
];
/// For GPUs: large enough to fill one.
const DEVICE: &[Row] = &[
    ("gpu-row-1m", Kind::Row, &[1 << 20, 128], &[1 << 20, 128], (1, 1), 1, "bk,bk->b", HALVES),
    ("gpu-row-64k", Kind::Row, &[1 << 16, 2048], &[1 << 16, 2048], (1, 1), 1, "bk,bk->b", HALVES),
    ("gpu-matvec", Kind::Matvec, &[4096, 256], &[4096, 512, 256], (1, 2), 1, "bk,bnk->bn", HALVES),
    ("gpu-attn", Kind::Matmul, &[64, 1024, 64], &[64, 1024, 64], (2, 2), 1, "bmk,bnk->bmn", HALVES),
    ("gpu-gemm", Kind::Matmul, &[16, 2048, 2048], &[16, 2048, 2048], (2, 2), 1, "bmk,bnk->bmn", HALVES),
];
/// Small enough to be over at once and for gradients below 128 KiB, whose memory the allocator keeps; large enough for the loops.
const SMOKE: &[Row] = &[
    ("smoke-row", Kind::Row, &[120, 256], &[120, 256], (1, 1), 1, "bk,bk->b", &[Dtype::F32, Dtype::F16]),
    ("smoke-matmul", Kind::Matmul, &[7, 64, 64], &[7, 48, 64], (2, 2), 1, "bmk,bnk->bmn", &[Dtype::F32, Dtype::F16]),
];

pub fn names() -> impl Iterator<Item = &'static str> {
    CELLS.iter().chain(DEVICE).map(|cell| cell.0)
}

/// The cells of these names, or all of the CPU's if there are none, plain and normalised, in each of their dtypes.
pub fn cases(names: &[String]) -> Vec<Case> {
    let chosen = |cell: &&Row| names.iter().any(|name| name == cell.0);
    match names {
        [] => CELLS.iter().flat_map(variants).collect(),
        _ => CELLS.iter().chain(DEVICE).filter(chosen).flat_map(variants).collect(),
    }
}

pub fn device_cases() -> Vec<Case> {
    DEVICE.iter().flat_map(variants).collect()
}

pub fn smoke_cases() -> Vec<Case> {
    SMOKE.iter().flat_map(variants).collect()
}

fn variants(&(name, kind, lhs, rhs, axes, batch_dims, einsum, dtypes): &Row) -> impl Iterator<Item = Case> {
    let variants = dtypes.iter().flat_map(|&dtype| [(dtype, false), (dtype, true)]);
    variants.map(move |(dtype, normalize)| {
        let (cell, einsum) = (name.into(), einsum.into());
        Case { cell, kind, dtype, normalize, lhs: lhs.into(), rhs: rhs.into(), axes, batch_dims, einsum }
    })
}

/// Row products of `(n/128) × 128`, n from 2¹⁰ to 2²⁴.
pub fn growing_cases() -> Vec<Case> {
    let sizes = (10..=24).flat_map(|power| [(power, false), (power, true)]);
    sizes
        .map(|(power, normalize)| {
            let shape = vec![(1 << power) / 128, 128];
            Case {
                cell: format!("2^{power}"),
                kind: Kind::Row,
                dtype: Dtype::F32,
                normalize,
                lhs: shape.clone(),
                rhs: shape,
                axes: (1, 1),
                batch_dims: 1,
                einsum: "bk,bk->b".into(),
            }
        })
        .collect()
}

/// The layout of an input: `(batch, outer, k, inner)`, free index `outer · inner`.
#[derive(Clone, Copy)]
pub struct Side {
    pub batch: usize,
    pub outer: usize,
    pub k: usize,
    pub inner: usize,
}

impl Side {
    fn new(shape: &[usize], axis: usize, batch_dims: usize) -> Self {
        let size = |axes: &[usize]| axes.iter().product();
        let (batch, outer) = (size(&shape[..batch_dims]), size(&shape[batch_dims..axis]));
        Side { batch, outer, k: shape[axis], inner: size(&shape[axis + 1..]) }
    }

    pub fn free(&self) -> usize {
        self.outer * self.inner
    }

    /// The same elements as matrices `(free, k)` with strides, for products that take no copy.
    pub fn matrices(&self) -> Matrices {
        let Side { outer, k, inner, .. } = *self;
        let batch_stride = outer * k * inner;
        match (outer, inner) {
            (_, 1) => Matrices { blocks: 1, free: outer, k, free_stride: k, k_stride: 1, block_stride: 0, batch_stride },
            _ => Matrices {
                blocks: outer,
                free: inner,
                k,
                free_stride: 1,
                k_stride: inner,
                block_stride: k * inner,
                batch_stride,
            },
        }
    }

    pub fn index(&self, batch: usize, free: usize, k: usize) -> usize {
        ((batch * self.outer + free / self.inner) * self.k + k) * self.inner + free % self.inner
    }
}

/// One input as matrices: `blocks` of them in each batch, each `free × k`.
#[derive(Clone, Copy)]
pub struct Matrices {
    pub blocks: usize,
    pub free: usize,
    pub k: usize,
    pub free_stride: usize,
    pub k_stride: usize,
    pub block_stride: usize,
    pub batch_stride: usize,
}

/// The two inputs in the dtype of the case, the same on every run.
pub fn inputs(case: &Case) -> [Vec<u8>; 2] {
    let draw = |shape: &[usize], seed| -> Vec<u8> {
        let mut random = StdRng::seed_from_u64(seed);
        (0..shape.iter().product()).flat_map(|_| case.dtype.encode(random.random_range(-1.0..1.0))).collect()
    };
    [draw(&case.lhs, 1), draw(&case.rhs, 2)]
}
