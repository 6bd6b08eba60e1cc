//! The loops over numbers, by every instruction set that the machine has.

use alloc::{vec, vec::Vec};

use burn_core::tensor::{bf16, f16};

use super::{
    super::{
        kernel::{self, Element, LINES},
        runs::{CHUNK, Run, RunMut},
        simd::{self, Isa, Task},
    },
    EXTENTS, assert_near, wave,
};

/// Every loop over numbers of one dtype, by one instruction set.
struct EveryLoop<T> {
    len: usize,
    epsilon: f64,
    _element: core::marker::PhantomData<T>,
}

impl<T: Element> Task for EveryLoop<T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        let EveryLoop { len, epsilon, .. } = self;
        let reals = |phase: f64| wave(len, phase).into_iter().map(T::from_f64).collect::<Vec<T>>();
        let (x, y) = (reals(0.1), reals(0.4));
        let f64s = |x: &[T]| x.iter().map(|x| x.to_f64()).collect::<Vec<f64>>();
        let (fx, fy) = (f64s(&x), f64s(&y));
        let sum = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let size = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a * b).abs()).sum::<f64>();
        let near_sum = |name: &str, given: f64, a: &[f64], b: &[f64]| {
            assert_near(&alloc::format!("{name} of {len}"), given, sum(a, b), size(a, b), f64::EPSILON * len as f64);
        };
        near_sum("dot", kernel::dot(isa, &x, &y), &fx, &fy);
        assert_near(
            &alloc::format!("dot of {len} alike"),
            T::dot(isa, &x, &y),
            sum(&fx, &fy),
            size(&fx, &fy),
            f32::EPSILON.into(),
        );
        let [xx, xy, yy] = T::dot_and_squares(isa, &x, &y);
        for (given, a, b) in [(xx, &fx, &fx), (xy, &fx, &fy), (yy, &fy, &fy)] {
            let name = alloc::format!("dot_and_squares of {len}");
            assert_near(&name, given, sum(a, b), size(a, b), f32::EPSILON.into());
        }

        let (a, b) = (1.7, -0.3);
        let near = |name: &str, given: f64, terms: [f64; 2]| {
            let scale = terms[0].abs() + terms[1].abs();
            assert_near(&alloc::format!("{name} of {len}"), given, terms[0] + terms[1], scale, epsilon);
        };
        let mut to = reals(0.7);
        let before = f64s(&to);
        kernel::combine(isa, &mut to, (a, &fx[..]), (b, &y));
        (0..len).for_each(|i| near("combine", to[i].to_f64(), [a * fx[i], b * fy[i]]));
        T::combine(isa, &mut to, (a, &x), (b, &y), 3.0);
        (0..len).for_each(|i| near("combine alike", to[i].to_f64(), [a * fx[i], b * fy[i]]));
        let mut other = reals(0.8);
        T::combine_both(isa, [&mut to, &mut other], a, [&x, &y], [(b, 3.0), (0.6, 3.0)]);
        (0..len).for_each(|i| near("combine_both, x", to[i].to_f64(), [a * fy[i], b * fx[i]]));
        (0..len).for_each(|i| near("combine_both, y", other[i].to_f64(), [a * fx[i], 0.6 * fy[i]]));
        kernel::scale(isa, &mut to, a, &x);
        (0..len).for_each(|i| near("scale", to[i].to_f64(), [a * fx[i], 0.0]));
        T::scale(isa, &mut to, 1.75, &x);
        (0..len).for_each(|i| assert_eq!(to[i].to_f64(), T::from_f64(1.75 * fx[i]).to_f64(), "scale of {len}, rounded once"));
        let mut sums = before.clone();
        kernel::accumulate(isa, &mut sums, a, &x);
        (0..len).for_each(|i| near("accumulate", sums[i], [before[i], a * fx[i]]));
        let mut sums = before.clone();
        kernel::accumulate_products(isa, &mut sums, &x, &y);
        (0..len).for_each(|i| near("accumulate_products", sums[i], [before[i], fx[i] * fy[i]]));
        for count in [1, 2, LINES - 1, LINES] {
            let lines: Vec<&[T]> = (0..count).map(|line| if line % 2 == 0 { &x[..] } else { &y[..] }).collect();
            let (of_x, of_y) = (count.div_ceil(2) as f64, (count / 2) as f64);
            let mut sums = before.clone();
            T::add_squares(isa, &mut sums, &lines);
            for i in 0..len {
                let squares = of_x * fx[i] * fx[i] + of_y * fy[i] * fy[i];
                let name = alloc::format!("add_squares of {count} lines of {len}");
                assert_near(&name, sums[i], before[i] + squares, before[i].abs() + squares, f32::EPSILON.into());
            }
        }
        // Written to the dtype that matrices are multiplied in.
        let wide = || before.iter().map(|&x| T::Real::from_f64(x)).collect::<Vec<_>>();
        let mut to = wide();
        kernel::combine_each(isa, &mut to, &fy, &fx, &y);
        (0..len).for_each(|i| near("combine_each", to[i].to_f64(), [fy[i] * before[i], -fx[i] * fy[i]]));
        let mut to = wide();
        kernel::combine_in_place(isa, &mut to, b, a, &x);
        (0..len).for_each(|i| near("combine_in_place", to[i].to_f64(), [b * before[i], -a * fx[i]]));
        let mut to = wide();
        T::widen(isa, &x, &mut to);
        (0..len).for_each(|i| assert_eq!(to[i].to_f64(), fx[i], "widen of {len}"));
        let mut back = vec![T::default(); len];
        T::narrow(isa, &to, &mut back, true);
        (0..len).for_each(|i| assert_eq!(back[i].to_f64(), fx[i], "narrow of {len}"));
        for first in 0..3 {
            let mut streamed = vec![T::default(); len + 4];
            // SAFETY: there is room, and `streamed` is read after the fence only.
            unsafe { simd::stream(isa, &x, streamed.as_mut_ptr().add(first)) };
            isa.fence();
            let written = (0..len + 4).map(|i| i.checked_sub(first).and_then(|i| fx.get(i)).copied().unwrap_or(0.0));
            written.zip(streamed).for_each(|(expected, given)| assert_eq!(given.to_f64(), expected, "stream of {len}"));
        }
    }
}

fn every_loop<T: Element>(epsilon: f64) {
    for len in EXTENTS {
        simd::for_each_isa(|| EveryLoop::<T> { len, epsilon, _element: core::marker::PhantomData });
    }
}

#[test]
fn every_loop_agrees_with_plain_loops_by_every_instruction_set() {
    every_loop::<f32>(f32::EPSILON.into());
    every_loop::<f64>(f64::EPSILON);
    every_loop::<f16>(f16::EPSILON.into());
    every_loop::<bf16>(bf16::EPSILON.into());
}

#[test]
fn runs_are_read_and_written_at_any_step_and_nowhere_else() {
    for len in EXTENTS {
        for step in [1isize, 3, -2, 0] {
            let memory = wave(3 * len + 3, 0.2);
            let first = if step < 0 { 2 * len } else { 1 };
            let place = |i: usize| (first as isize + i as isize * step) as usize;
            let mut buffer = [0.0; CHUNK];
            let run = Run { at: memory[first..].as_ptr(), step, len };
            // SAFETY: all places lie within `memory`.
            let (read, whole) = unsafe { (run.gather(&mut buffer), run.as_slice()) };
            (0..len).for_each(|i| assert_eq!(read[i], memory[place(i)], "step {step}"));
            assert_eq!(whole, (step == 1).then_some(read));
            if step == 0 {
                continue; // Nothing writes to one place twice.
            }
            let mut target = memory.clone();
            let run = RunMut { at: target[first..].as_mut_ptr(), step, len };
            // SAFETY: as above.
            unsafe {
                let mut buffer = [0.0; CHUNK];
                let to = run.target(&mut buffer);
                (0..len).for_each(|i| to[i] = i as f64);
                run.deliver(to);
            }
            for (at, &x) in target.iter().enumerate() {
                let expected = (0..len).find(|&i| place(i) == at).map_or(memory[at], |i| i as f64);
                assert_eq!(x, expected, "step {step}, place {at}");
            }
        }
    }
}

/// Numbers whose squares, and products with a factor, are beyond f32, by one instruction set.
struct BeyondF32;

impl Task for BeyondF32 {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        fn check<S: Isa, T: Element>(isa: S, sizes: &[f64], epsilon: f64) {
            for (&x, &y) in sizes.iter().flat_map(|x| sizes.iter().map(move |y| (x, y))) {
                let (x, y) = ([T::from_f64(x); 70], [T::from_f64(y); 70]);
                let [xx, xy, yy] = T::dot_and_squares(isa, &x, &y);
                let (x0, y0) = (x[0].to_f64(), y[0].to_f64());
                for (name, given, expected) in [("xx", xx, x0 * x0), ("xy", xy, x0 * y0), ("yy", yy, y0 * y0)] {
                    let name = alloc::format!("{name} of {x0:e} and {y0:e}");
                    assert_near(&name, given, 70.0 * expected, 70.0 * expected, f32::EPSILON.into());
                }
                // As in a gradient: the factor of each is the other's size over a divisor, and no term is larger than `most`.
                let most = 2.0;
                let (a, b) = (0.75 * most / x0, -0.5 * most / y0);
                let mut to = [T::default(); 70];
                T::combine(isa, &mut to, (a, &x), (b, &y), most);
                let name = alloc::format!("combine {x0:e} and {y0:e}");
                to.iter().for_each(|to| assert_near(&name, to.to_f64(), 0.5, most, epsilon));
            }
        }
        check::<S, f32>(isa, &[1.0, 3e20, 1e38, 1e-13, 1e-25, 1e-37], f32::EPSILON.into());
        check::<S, bf16>(isa, &[1.0, 3e20, 1e38, 1e-13, 1e-25, 1e-37], bf16::EPSILON.into());
        check::<S, f16>(isa, &[1.0, 6e4, 6e-5], f16::EPSILON.into());

        // Terms beyond f32, whose sum is not.
        let (mut x, y) = ([1e20f32; 70], [1e20f32; 70]);
        (0..35).for_each(|i| x[i] = -1e20);
        (x[0], x[69]) = (1.0, 2.0);
        assert_near("products beyond f32", f32::dot(isa, &x, &y), 3e20, 70.0 * 1e40, f64::EPSILON);
        let (x, mut to) = ([bf16::from_f64(2e38); 70], [bf16::ZERO; 70]);
        bf16::combine(isa, &mut to, (3.0, &x), (-2.5, &x), 6e38);
        to.iter().for_each(|to| assert_near("terms beyond f32", to.to_f64(), 1e38, 1e38, bf16::EPSILON.into()));
    }
}

#[test]
fn sums_and_gradients_of_numbers_that_f32_cannot_multiply_are_made_in_f64() {
    simd::for_each_isa(|| BeyondF32);
}

/// Numbers at the edges of the half dtypes, by one instruction set.
struct Edges;

impl Task for Edges {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        fn check<S: Isa, T: Element<Real = f32>>(isa: S, name: &str, largest: f64, halfway: f64, even: f64) {
            // As many as a register holds and more, so that the rest of a run is met too.
            for (x, finite, rounded) in [
                (1e39, largest, f64::INFINITY),
                (-1e39, -largest, f64::NEG_INFINITY),
                (f64::INFINITY, largest, f64::INFINITY),
                (halfway, even, even),
                (-0.0, 0.0, 0.0),
            ] {
                for (asked, expected) in [(true, finite), (false, rounded)] {
                    let mut to = [T::default(); 17];
                    T::narrow(isa, &[x as f32; 17], &mut to, asked);
                    to.iter().for_each(|to| assert_eq!(to.to_f64(), expected, "{name}: {x:e}, finite {asked}"));
                    T::narrow(isa, &[f32::NAN; 17], &mut to, asked);
                    to.iter().for_each(|to| assert!(to.to_f64().is_nan(), "{name}: NaN, finite {asked}"));
                    // The same by way of f64.
                    let finite = |x: f64| {
                        let x = isa.splat_f64s(x);
                        if asked { T::finite(isa, x) } else { x }
                    };
                    T::store(isa, finite(x), &mut to);
                    assert_eq!(to[S::F64_LANES - 1].to_f64(), expected, "{name}: {x:e} stored, finite {asked}");
                    T::store(isa, finite(f64::NAN), &mut to);
                    assert!(to[S::F64_LANES - 1].to_f64().is_nan(), "{name}: NaN stored, finite {asked}");
                }
            }
        }
        // Halfway between two numbers, the even one is nearest.
        check::<S, f16>(isa, "f16", 65504.0, 2049.0, 2048.0);
        check::<S, bf16>(isa, "bf16", bf16::MAX.into(), 257.0, 256.0);
    }
}

#[test]
fn half_precision_rounds_to_even_saturates_where_asked_and_keeps_nan() {
    simd::for_each_isa(|| Edges);
}
