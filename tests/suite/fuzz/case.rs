//! One random product, made from a seed and an index alone.

use burn::tensor::{DType, FloatDType};
use burn_dot::{Axes, DotConfig};
use rand::{
    RngExt, SeedableRng,
    rngs::StdRng,
    seq::{IndexedMutRandom, IndexedRandom, IteratorRandom, SliceRandom},
};

use super::view::View;
use crate::{
    device::{float_dtypes, int_dtypes, integers_wrap, is_cubecl, is_ieee, max_rank},
    oracle::{self, Array},
    run::{product, rounded},
};

/// The highest rank of an output: batch and free axes together.
pub const MAX_OUTPUT_RANK: usize = 7;

/// Numbers in memory, and the view of them that is the tensor.
#[derive(Clone, Debug)]
pub struct Numbers {
    pub shape: Vec<usize>,
    pub view: View,
    pub memory: Array,
}

impl Numbers {
    fn new(shape: &[usize], dtype: DType, range: Range, rng: &mut StdRng) -> Self {
        let view = View::random(shape, rng);
        let memory = rounded(&values(&view.memory, dtype, range, rng), dtype);
        Numbers { shape: shape.to_vec(), view, memory }
    }

    /// The elements in row-major order.
    pub fn array(&self) -> Array {
        Array::new(&self.shape, self.view.places().into_iter().map(|place| self.memory.data[place]).collect())
    }
}

/// Who has an input while the gradients are computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Holder {
    /// The test, which asks for its gradient: the view is the leaf.
    Test,
    /// The graph alone, so that its memory may be overwritten: the leaf is what it was computed from.
    Graph,
}

#[derive(Clone, Debug)]
pub struct Case {
    pub config: DotConfig,
    pub dtype: DType,
    pub lhs: Numbers,
    pub rhs: Numbers,
    /// The gradient that arrives at the output.
    pub cotangent: Numbers,
    pub tracked: [bool; 2],
    pub holders: [Holder; 2],
    /// Whether the same tensor is both inputs.
    pub same: bool,
}

/// How much work a case is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Extent {
    Small,
    /// Enough multiplications for several threads.
    Large,
    /// One axis of up to 2²⁰, contracted or not.
    Long,
    /// Free axes that take several blocks of a matrix product, the last of them short.
    Blocks,
}

/// Magnitudes that the numbers may have.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Range {
    /// Products of two, and sums of them, stay within the dtype.
    Moderate,
    /// Whatever the dtype holds.
    Any,
}

impl Case {
    pub fn random(seed: u64, index: u64) -> Self {
        let rng = &mut rng(seed, index);
        let extent = match rng.random_range(0..500) {
            0 => Extent::Long,
            1 => Extent::Blocks,
            2..13 => Extent::Large,
            _ => Extent::Small,
        };
        if rng.random_bool(0.08) { Case::of_integers(rng) } else { Case::of(extent, float_dtype(rng), rng) }
    }

    /// A product of floats with an axis of 2¹² to 2²⁰, of which both gradients are asked for.
    pub fn long(dtype: DType, seed: u64, index: u64) -> Self {
        let case = Case::of(Extent::Long, dtype, &mut rng(seed, index));
        Case { tracked: [true; 2], ..case }
    }

    /// A product of contiguous tensors whose elements are all this number, under a gradient of ones.
    pub fn constant(config: DotConfig, dtype: DType, [lhs, rhs]: [&[usize]; 2], element: f64) -> Self {
        let numbers = |shape: &[usize], element: f64, dtype: DType| Numbers {
            shape: shape.to_vec(),
            view: View::contiguous(shape),
            memory: rounded(&Array::new(shape, vec![element; shape.iter().product()]), dtype),
        };
        let out = oracle::output_shape(&product(&config, lhs.len(), rhs.len()), lhs, rhs);
        let out_dtype = config.output_dtype.map_or(dtype, DType::from);
        Case {
            config,
            dtype,
            lhs: numbers(lhs, element, dtype),
            rhs: numbers(rhs, element, dtype),
            cotangent: numbers(&out, 1.0, out_dtype),
            tracked: [true; 2],
            holders: [Holder::Test; 2],
            same: false,
        }
    }

    fn of(extent: Extent, dtype: DType, rng: &mut StdRng) -> Self {
        let mut config = DotConfig::new(0).with_normalize(rng.random_bool(0.5));
        if rng.random_bool(0.5) {
            config = config.with_epsilon(*[1e-7, 1e-8, 1e-3, 0.5, 1.25, 30.0, 1e-12, 1e-30].choose(rng).unwrap());
        }
        if rng.random_bool(0.4) {
            config = config.with_output_dtype(FloatDType::from(*float_dtypes().choose(rng).unwrap()));
        }
        let (config, [lhs, rhs]) = shapes(config, extent, rng);
        let range = if config.normalize { Range::Any } else { Range::Moderate };
        let out_dtype = config.output_dtype.map_or(dtype, DType::from);
        let out = oracle::output_shape(&product(&config, lhs.len(), rhs.len()), &lhs, &rhs);
        let same = lhs == rhs && rng.random_bool(0.3);
        let lhs = Numbers::new(&lhs, dtype, range, rng);
        let rhs = if same { lhs.clone() } else { Numbers::new(&rhs, dtype, range, rng) };
        let cotangent = Numbers::new(&out, out_dtype, Range::Moderate, rng);
        let tracked = *[[true, true], [true, true], [true, false], [false, true], [false, false]].choose(rng).unwrap();
        let mut case = Case {
            config,
            dtype,
            lhs,
            rhs,
            cotangent,
            tracked: if same { [tracked[0]; 2] } else { tracked },
            holders: [0; 2].map(|_| *[Holder::Test, Holder::Graph].choose(rng).unwrap()),
            same,
        };
        for (holder, x) in case.holders.iter_mut().zip([&case.lhs, &case.rhs]) {
            // Burn 0.22.1 panics when it multiplies what is empty and flipped. And on CubeCL it sums what is permuted wrongly, as it has to
            // on the way back to a leaf that is repeated and then permuted: `burn_alone_sums_axes_that_lie_in_reverse_wrongly`.
            if x.memory.data.is_empty() || is_cubecl() && x.view.permutes_what_repeats() {
                *holder = Holder::Test;
            }
        }
        let empty = [&case.lhs, &case.rhs, &case.cotangent].iter().any(|x| x.shape.contains(&0));
        if is_ieee() && !same && !empty && rng.random_bool(0.04) {
            case.plant(*[f64::NAN, f64::INFINITY, f64::NEG_INFINITY].choose(rng).unwrap(), rng);
        }
        case
    }

    fn of_integers(rng: &mut StdRng) -> Self {
        let mut case = Case::of(Extent::Small, DType::F64, rng);
        case.dtype = if integers_wrap() { *int_dtypes().choose(rng).unwrap() } else { DType::I64 };
        let wider: Vec<DType> = int_dtypes().into_iter().filter(|wider| holds(*wider, case.dtype)).collect();
        let output_dtype = if integers_wrap() && rng.random_bool(0.4) { wider.choose(rng).copied() } else { None };
        case.config = DotConfig { normalize: false, output_dtype, ..case.config };
        case.tracked = [false; 2];
        let (least, most) = whole_range(case.dtype);
        let factor = if integers_wrap() { 2f64.powi(*[0, 0, 4, 30].choose(rng).unwrap()) } else { 1.0 };
        let mut whole = |x: &Numbers| {
            Array::new(
                &x.memory.shape,
                x.memory.data.iter().map(|_| (f64::from(rng.random_range(-20..=20)) * factor).clamp(least, most)).collect(),
            )
        };
        case.lhs.memory = whole(&case.lhs);
        case.rhs.memory = if case.same { case.lhs.memory.clone() } else { whole(&case.rhs) };
        case
    }

    /// Puts a number that is not finite in some place of an input, or NaN in some place of the cotangent.
    fn plant(&mut self, number: f64, rng: &mut StdRng) {
        let (x, number) = match rng.random_range(0..3) {
            0 => (&mut self.lhs, number),
            1 => (&mut self.rhs, number),
            _ => (&mut self.cotangent, f64::NAN),
        };
        if let Some(number_there) = x.memory.data.choose_mut(rng) {
            *number_there = number;
        }
    }

    pub fn out_dtype(&self) -> DType {
        self.config.output_dtype.map_or(self.dtype, DType::from)
    }

    /// The dtype that products are to be added in.
    pub fn accumulator(&self) -> DType {
        if [self.dtype, self.out_dtype()].contains(&DType::F64) { DType::F64 } else { DType::F32 }
    }
}

pub fn rng(seed: u64, index: u64) -> StdRng {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..16].copy_from_slice(&index.to_le_bytes());
    StdRng::from_seed(bytes)
}

/// A float dtype of the device. f32 is what people use.
fn float_dtype(rng: &mut StdRng) -> DType {
    let held = float_dtypes();
    let often = [DType::F32, DType::F32, DType::F64, DType::F16, DType::BF16];
    let usable: Vec<DType> = often.into_iter().filter(|dtype| held.contains(dtype)).collect();
    *usable.choose(rng).unwrap()
}

/// Whether a dtype of integers has every value of another.
fn holds(wider: DType, dtype: DType) -> bool {
    wider == dtype || wider.size() > dtype.size() && (wider.is_int() || dtype.is_uint())
}

/// The least and the largest whole number to use: of the dtype where f64 has them.
fn whole_range(dtype: DType) -> (f64, f64) {
    match dtype {
        DType::I8 => (-128.0, 127.0),
        DType::I16 => (-32768.0, 32767.0),
        DType::I32 => (-2147483648.0, 2147483647.0),
        DType::U8 => (0.0, 255.0),
        DType::U16 => (0.0, 65535.0),
        DType::U32 => (0.0, 4294967295.0),
        DType::U64 => (0.0, 1e12),
        _ => (-1e12, 1e12),
    }
}

/// What an axis is for, before it has a place.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Role {
    Batch(usize),
    Pair(usize),
    LhsFree(usize),
    RhsFree(usize),
}

fn roles(count: usize, role: impl Fn(usize) -> Role) -> Vec<Role> {
    (0..count).map(role).collect()
}

/// Random axes, and the sizes of the inputs.
fn shapes(config: DotConfig, extent: Extent, rng: &mut StdRng) -> (DotConfig, [Vec<usize>; 2]) {
    let batch_dims = *[0, 0, 1, 1, 1, 1, 1, 2, 2, 3].choose(rng).unwrap();
    let pairs = *[1, 1, 1, 1, 1, 1, 2, 2, 3].choose(rng).unwrap();
    let room = (6 - batch_dims - pairs).min(3);
    let mut free = || (*[0, 1, 1, 1, 2, 2, 3].choose(rng).unwrap()).min(room);
    let (lhs_free, rhs_free) = (free(), free());
    let rhs_free = rhs_free.min(max_rank().min(MAX_OUTPUT_RANK) - batch_dims - lhs_free);
    // Inputs of one shape, so that one tensor may be both.
    let twins = lhs_free == rhs_free && rng.random_bool(0.15);

    let mut place = |free: Vec<Role>| {
        let mut rest = [free, roles(pairs, Role::Pair)].concat();
        rest.shuffle(rng);
        [roles(batch_dims, Role::Batch), rest].concat()
    };
    let lhs = place(roles(lhs_free, Role::LhsFree));
    let twin = |role: &Role| if let Role::LhsFree(i) = role { Role::RhsFree(*i) } else { *role };
    let rhs = if twins { lhs.iter().map(twin).collect() } else { place(roles(rhs_free, Role::RhsFree)) };

    let every = [lhs.clone(), roles(rhs_free, Role::RhsFree)].concat();
    let mut sizes = Sizes { axes: every.into_iter().map(|role| (role, 1)).collect(), twins };
    sizes.draw(extent, rng);
    let mut shapes = [&lhs, &rhs].map(|roles| roles.iter().map(|&role| sizes.of(role)).collect::<Vec<_>>());
    let broadcast = rng.random_bool(0.3);
    for axis in (0..batch_dims).filter(|_| broadcast) {
        let side = rng.random_range(0..4);
        if side < 2 {
            shapes[side][axis] = 1;
        }
    }

    let mut axis = |roles: &[Role], pair: usize| {
        let axis = roles.iter().position(|&role| role == Role::Pair(pair)).expect("a pair is in both inputs") as isize;
        if rng.random_bool(0.5) { axis } else { axis - roles.len() as isize }
    };
    let pairs: Vec<(isize, isize)> = (0..pairs).map(|pair| (axis(&lhs, pair), axis(&rhs, pair))).collect();
    let axes = match pairs[..] {
        [(l, r)] if l == r => Axes::Both(l),
        [(l, r)] => Axes::Pair(l, r),
        _ => Axes::Pairs(pairs),
    };
    (DotConfig { axes, batch_dims, broadcast_batch: broadcast, ..config }, shapes)
}

/// The size of each axis.
struct Sizes {
    axes: Vec<(Role, usize)>,
    /// Whether rhs has the free sizes of lhs.
    twins: bool,
}

impl Sizes {
    fn of(&self, role: Role) -> usize {
        let role = match role {
            Role::RhsFree(i) if self.twins => Role::LhsFree(i),
            role => role,
        };
        self.axes.iter().find(|axis| axis.0 == role).expect("a size for each role").1
    }

    fn draw(&mut self, extent: Extent, rng: &mut StdRng) {
        // Those around the widths of SIMD lanes and of blocks, and small ones.
        let lanes = [15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257];
        let small = [1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 9];
        for (_, size) in &mut self.axes {
            *size = match rng.random_range(0..100) {
                0 if extent == Extent::Small => 0,
                0..20 if extent != Extent::Long => *lanes.choose(rng).unwrap(),
                _ => *small.choose(rng).unwrap(),
            };
        }
        match extent {
            Extent::Small => self.shrink(1 << 11, 1 << 12, rng),
            Extent::Large => {
                while self.multiplications() < 1 << 17 {
                    let (_, size) = self.axes.choose_mut(rng).unwrap();
                    *size = 2 * *size + rng.random_range(0..2);
                }
                self.shrink(1 << 18, 1 << 18, rng);
            }
            Extent::Blocks => {
                for (role, size) in &mut self.axes {
                    *size = match role {
                        Role::LhsFree(0) | Role::RhsFree(0) => {
                            *[40, 100, 129, 257, 1024].choose(rng).unwrap() + rng.random_range(0..9)
                        }
                        Role::Pair(0) => *[3, 9, 20, 40].choose(rng).unwrap(),
                        _ => 1,
                    };
                }
                self.shrink(1 << 20, 1 << 23, rng);
            }
            Extent::Long => {
                // Long sums forward, or in a gradient.
                let summed = |axis: &&mut (Role, usize)| !matches!(axis.0, Role::Batch(_));
                let (_, size) = self.axes.iter_mut().filter(summed).choose(rng).unwrap();
                *size = 2f64.powf(rng.random_range(12.0..20.0)) as usize;
                self.shrink(1 << 20, 1 << 21, rng);
            }
        }
    }

    /// Makes axes smaller until no tensor has more elements, nor the product more multiplications. Long axes stay long.
    fn shrink(&mut self, elements: usize, multiplications: usize, rng: &mut StdRng) {
        while self.multiplications() > multiplications || self.elements().into_iter().any(|count| count > elements) {
            let short = |(_, size): &&mut (Role, usize)| (2..1 << 12).contains(size);
            match self.axes.iter_mut().filter(short).choose(rng) {
                Some((_, size)) => *size /= 2,
                None => self.axes.iter_mut().for_each(|(_, size)| *size = (*size).min((1 << 12) - 1)),
            }
        }
    }

    fn product(&self, wanted: impl Fn(Role) -> bool) -> usize {
        self.axes.iter().filter(|axis| wanted(axis.0)).map(|axis| self.of(axis.0)).product()
    }

    fn multiplications(&self) -> usize {
        self.product(|_| true)
    }

    /// Of lhs, rhs and the output.
    fn elements(&self) -> [usize; 3] {
        [
            self.product(|role| !matches!(role, Role::RhsFree(_))),
            self.product(|role| !matches!(role, Role::LhsFree(_))),
            self.product(|role| !matches!(role, Role::Pair(_))),
        ]
    }
}

/// Random elements.
fn values(shape: &[usize], dtype: DType, range: Range, rng: &mut StdRng) -> Array {
    // Many numbers are more often of one sign: only then do errors add up.
    let kind = if shape.iter().any(|&size| size >= 1 << 12) { rng.random_range(0..4) } else { rng.random_range(0..8) };
    let decades = decades(dtype, range);
    let scale = if rng.random_bool(0.3) { 10f64.powf(rng.random_range(-decades..decades)) } else { 1.0 };
    let mut data: Vec<f64> = (0..shape.iter().product())
        .map(|_| {
            let x: f64 = rng.random_range(-1.0..1.0);
            scale
                * match kind {
                    0 => 0.05 + x.abs(),
                    1 => 0.1,
                    2 => (3.0 * x).round(),
                    3 => x * 10f64.powf(rng.random_range(-decades..0.0)),
                    4 if x < 0.4 => 0.0,
                    _ => x,
                }
        })
        .collect();
    // Along one axis now and then zeros, the tiny and the huge: whole vectors, or single elements of all.
    if rng.random_bool(0.25) {
        let axis = rng.random_range(0..shape.len());
        let inner: usize = shape[axis + 1..].iter().product();
        let factors = [1.0, 1.0, 0.0, -1.0, 1e-9, 10f64.powf(-decades), 10f64.powf(decades / 2.0)];
        let factors: Vec<f64> = (0..shape[axis]).map(|_| *factors.choose(rng).unwrap()).collect();
        data.iter_mut().enumerate().for_each(|(i, x)| *x *= factors[i / inner % shape[axis]]);
    }
    let largest = dtype.finfo().expect("a float").max;
    Array::new(shape, data).map(|x| x.clamp(-largest, largest))
}

/// How many powers of ten a scale may lie from 1.
fn decades(dtype: DType, range: Range) -> f64 {
    match (dtype, range) {
        (DType::F64, Range::Any) => 150.0,
        (DType::F64, Range::Moderate) => 60.0,
        (DType::F16, Range::Any) => 4.0,
        (DType::F16, Range::Moderate) => 1.5,
        (_, Range::Any) => 25.0,
        (_, Range::Moderate) => 9.0,
    }
}
