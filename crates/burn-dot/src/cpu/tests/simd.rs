//! What each instruction set does with single registers, by every instruction set that the machine has.

use alloc::{format, vec, vec::Vec};
use core::cell::Cell;

use burn_core::tensor::{DType, bf16, f16};

use super::{
    super::{
        element::{Compute, Element},
        loops,
        simd::{self, Isa, Task, Transposed},
    },
    products::constant_product,
};

/// Neither f32 nor f64, by their bits: the oracle converts without the processor's instructions.
trait Oracle: Element<Compute = f32> {
    fn from_bits(bits: u16) -> Self;
    fn to_bits(self) -> u16;
    fn exact(self) -> f32;
    fn rounded(x: f32) -> Self;
}

macro_rules! oracle {
    ($element:ty) => {
        impl Oracle for $element {
            fn from_bits(bits: u16) -> Self {
                Self::from_bits(bits)
            }
            fn to_bits(self) -> u16 {
                self.to_bits()
            }
            fn exact(self) -> f32 {
                self.to_f32_const()
            }
            fn rounded(x: f32) -> Self {
                Self::from_f32_const(x)
            }
        }
    };
}
oracle!(f16);
oracle!(bf16);

/// A value converted by instructions is the oracle's, bit for bit; of NaN, that it is one.
fn assert_same<T: Oracle>(given: T, expected: T, from: f32) {
    let nan = expected.exact().is_nan() && given.exact().is_nan();
    let (given, expected) = (given.to_bits(), expected.to_bits());
    assert!(nan || given == expected, "{from:e} ({:#x}) became {given:#x}, not {expected:#x}", from.to_bits());
}

/// Every 16-bit float, and what lies between two of them.
struct Conversions<T>(core::marker::PhantomData<T>);

impl<T: Oracle> Task for Conversions<T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Isa>(self, isa: S) {
        let all: Vec<T> = (0..=u16::MAX).map(T::from_bits).collect();
        let mut wide = vec![0.0; all.len()];
        loops::to_compute(isa, &all, &mut wide);
        let mut in_f64 = vec![0.0; S::F64_LANES];
        for (x, wide) in all.chunks(S::F64_LANES).zip(wide.chunks(S::F64_LANES)) {
            isa.store_f64(T::load::<f64, S>(isa, x), &mut in_f64);
            for ((x, &given), &in_f64) in x.iter().zip(wide).zip(&in_f64) {
                let expected = x.exact();
                let same = |given: f32| given.to_bits() == expected.to_bits() || given.is_nan() && expected.is_nan();
                assert!(same(given), "{:#x} became {given:e}, not {expected:e}", x.to_bits());
                assert!(same(in_f64 as f32), "{:#x} became {in_f64:e} in f64, not {expected:e}", x.to_bits());
            }
        }

        // Each value, the element halfway to the next, and its neighbours in f32.
        let (mut between, mut rounded) = (Vec::new(), vec![T::default(); 4 * all.len()]);
        for pair in wide.windows(2) {
            let halfway = pair[0] / 2.0 + pair[1] / 2.0;
            between.extend([pair[0], halfway, halfway.next_up(), halfway.next_down()]);
        }
        rounded.truncate(between.len());
        loops::from_compute(isa, &between, &mut rounded, false);
        between.iter().zip(&rounded).for_each(|(&x, &given)| assert_same(given, T::rounded(x), x));
        for (x, rounded) in between.chunks_exact(S::F64_LANES).zip(rounded.chunks_exact_mut(S::F64_LANES)) {
            T::store::<f64, S>(isa, f32::load::<f64, S>(isa, x), rounded);
            x.iter().zip(rounded).for_each(|(&x, &mut given)| assert_same(given, T::rounded(x), x));
        }
    }
}

#[test]
fn every_16_bit_float_is_converted_exactly_and_rounded_to_the_nearest_even() {
    // SAFETY: the tasks have no pointers.
    unsafe {
        simd::for_each_isa(|| Conversions::<f16>(core::marker::PhantomData));
        simd::for_each_isa(|| Conversions::<bf16>(core::marker::PhantomData));
    }
}

struct Registers<R>(core::marker::PhantomData<R>);

impl<R: Compute> Task for Registers<R> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Isa>(self, isa: S) {
        let block = R::block::<S>();
        let (from_stride, to_stride) = (block + 2, block + 3);
        let from: Vec<R> = (0..block * from_stride).map(|i| R::from_f64(1.0 + i as f64)).collect();
        for (rows, columns) in (1..=block).flat_map(|rows| (1..=block).map(move |columns| (rows, columns))) {
            // No more than it may read: AddressSanitizer looks.
            let from = from[..(rows - 1) * from_stride + columns].to_vec();
            let mut to = vec![R::default(); columns * to_stride];
            let (from_stride, to_at) = (from_stride as isize, to.as_mut_ptr());
            let transposed = Transposed { from: from.as_ptr(), from_stride, rows, columns, to: to_at, to_stride };
            // SAFETY: each row has the elements of the block, and the stride leaves room for as many.
            unsafe { R::transpose(isa, transposed) };
            for (at, x) in to.into_iter().enumerate() {
                let (j, i) = (at / to_stride, at % to_stride);
                let expected = if i < rows { 1.0 + (i * from_stride as usize + j) as f64 } else { 0.0 };
                assert_eq!(x.to_f64(), expected, "row {i}, column {j} of a block of {rows} × {columns}");
            }
        }

        let inputs = [-3.0, -1.0, -0.0, 0.5, 1.0, 7.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN];
        for x in inputs {
            let mut to = vec![R::default(); R::lanes::<S>()];
            // SAFETY: `to` has the elements of a vector.
            unsafe { R::store_vector(isa, R::clamp(isa, R::splat(isa, R::from_f64(x)), R::from_f64(1.0)), to.as_mut_ptr()) };
            for given in to.into_iter().map(R::to_f64) {
                assert!(given == x.clamp(-1.0, 1.0) || given.is_nan() && x.is_nan(), "{x} in [-1, 1] is {given}");
            }
        }
    }
}

#[test]
fn blocks_are_transposed_and_clamping_keeps_nan() {
    // SAFETY: the tasks have no pointers.
    unsafe {
        simd::for_each_isa(|| Registers::<f32>(core::marker::PhantomData));
        simd::for_each_isa(|| Registers::<f64>(core::marker::PhantomData));
    }
}

/// Sums whose every addition a 16-bit float would have to round, and whose total f16 cannot hold.
struct LongSums<T> {
    epsilon: f64,
    _element: core::marker::PhantomData<T>,
}

impl<T: Element> Task for LongSums<T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Isa>(self, isa: S) {
        let (len, x) = (70_001, 1.0 + self.epsilon);
        let (ones, xs) = (vec![T::from_f64(1.0); len], vec![T::from_f64(x); len]);
        let (sum, name) = (len as f64 * x, format!("{len} terms by {} lanes", S::F32_LANES));
        assert_eq!(loops::dot(isa, &ones, &xs), sum, "{name}");
        assert_eq!(loops::dot_and_squares(isa, &ones, &xs)[..2], [len as f64, sum], "{name}");
        let mut sums = vec![0.0; 17];
        for _ in 0..len / 16 {
            loops::add_squares(isa, &mut sums, &[&xs[..17]; 16]);
        }
        assert_eq!(sums, vec![(len / 16 * 16) as f64 * x * x; 17], "{name}, each of 17 by itself");
    }
}

#[test]
fn sums_of_16_bit_floats_accumulate_in_f32_and_f64() {
    // SAFETY: the tasks have no pointers.
    unsafe {
        simd::for_each_isa(|| LongSums::<f16> { epsilon: f16::EPSILON.into(), _element: core::marker::PhantomData });
        simd::for_each_isa(|| LongSums::<bf16> { epsilon: bf16::EPSILON.into(), _element: core::marker::PhantomData });
    }
    for dtype in [DType::F16, DType::BF16] {
        for [m, n] in [[1, 1], [1, 3], [9, 33]] {
            let out = constant_product([m, n, 8192], [1.0, 0.125], dtype);
            assert!(out.iter().all(|&out| out == 1024.0), "{m} × {n}, {dtype:?}: {:?}", out.first());
        }
    }
}

/// The most lanes of f32 among the instruction sets that ran it.
struct Lanes<'a>(&'a Cell<usize>);

impl Task for Lanes<'_> {
    type Output = ();

    unsafe fn run<S: Isa>(self, _isa: S) {
        self.0.set(self.0.get().max(S::F32_LANES));
    }
}

#[test]
fn a_narrow_task_runs_by_registers_that_it_fills_and_a_wide_one_by_the_widest() {
    let [narrow, wide, widest] = [const { Cell::new(0) }; 3];
    // SAFETY: the tasks have no pointers.
    unsafe {
        simd::for_each_isa(|| Lanes(&widest));
        simd::dispatch_narrow(32, Lanes(&narrow));
        simd::dispatch_narrow(33, Lanes(&wide));
    }
    assert_eq!((narrow.get(), wide.get()), (widest.get().min(8), widest.get()));
    wide.set(0);
    // SAFETY: the task has no pointers.
    unsafe { simd::dispatch(Lanes(&wide)) };
    assert_eq!(wide, widest);
}
