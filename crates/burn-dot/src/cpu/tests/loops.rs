//! The loops over elements, by every instruction set that the machine has.

use alloc::{vec, vec::Vec};

use burn_core::tensor::{bf16, f16};

use super::{
    super::{
        element::{Compute, Element},
        loops::{self, GradFactors, Pair, SQUARED_ROWS},
        simd::{self, Isa, Task},
        streaming::{fence, stream},
        strided::{CHUNK, Strided, StridedMut},
    },
    EXTENTS, assert_near, wave,
};

/// Every loop over elements of one dtype, by one instruction set.
struct EveryLoop<T> {
    len: usize,
    epsilon: f64,
    _element: core::marker::PhantomData<T>,
}

impl<T: Element> Task for EveryLoop<T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Isa>(self, isa: S) {
        let EveryLoop { len, epsilon, .. } = self;
        let elements = |phase: f64| wave(len, phase).into_iter().map(T::from_f64).collect::<Vec<T>>();
        let (x, y) = (elements(0.1), elements(0.4));
        let f64s = |x: &[T]| x.iter().map(|x| x.to_f64()).collect::<Vec<f64>>();
        let (fx, fy) = (f64s(&x), f64s(&y));
        let sum = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let size = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a * b).abs()).sum::<f64>();
        let near_sum = |name: &str, given: f64, a: &[f64], b: &[f64]| {
            assert_near(&alloc::format!("{name} of {len}"), given, sum(a, b), size(a, b), f64::EPSILON * len as f64);
        };
        near_sum("dot", loops::dot_in::<f64, S, _>(isa, &x, &y), &fx, &fy);
        assert_near(
            &alloc::format!("dot of {len} alike"),
            loops::dot(isa, &x, &y),
            sum(&fx, &fy),
            size(&fx, &fy),
            f32::EPSILON.into(),
        );
        let [xx, xy, yy] = loops::dot_and_squares(isa, &x, &y);
        for (given, a, b) in [(xx, &fx, &fx), (xy, &fx, &fy), (yy, &fy, &fy)] {
            let name = alloc::format!("dot_and_squares of {len}");
            assert_near(&name, given, sum(a, b), size(a, b), f32::EPSILON.into());
        }

        let (a, b) = (1.7, -0.3);
        let near = |name: &str, given: f64, terms: [f64; 2]| {
            let scale = terms[0].abs() + terms[1].abs();
            assert_near(&alloc::format!("{name} of {len}"), given, terms[0] + terms[1], scale, epsilon);
        };
        let before = wave(len, 0.7);
        let factors = GradFactors { a, b: [b, 0.6], bounds: [3.0, 3.0] };
        let mut to = [elements(0.7), elements(0.8)];
        let grads = to.each_mut().map(|to| to.as_mut_ptr());
        let pair = Pair { len, vectors: [x.as_ptr(), y.as_ptr()], grads };
        // SAFETY: all have so many elements, here and below.
        unsafe { loops::gradients::<S, T, true, false>(isa, pair, factors) };
        (0..len).for_each(|i| near("gradients, x", to[0][i].to_f64(), [a * fy[i], b * fx[i]]));
        (0..len).for_each(|i| near("gradients, y", to[1][i].to_f64(), [a * fx[i], 0.6 * fy[i]]));
        // SAFETY: as above.
        unsafe { loops::gradients::<S, T, false, false>(isa, pair, factors) };
        (0..len).for_each(|i| near("gradient, x alone", to[0][i].to_f64(), [a * fy[i], b * fx[i]]));
        (0..len).for_each(|i| near("gradient, y left", to[1][i].to_f64(), [a * fx[i], 0.6 * fy[i]]));
        // In place: each is written over the vector whose gradient it is.
        to = [x.clone(), y.clone()];
        let grads = to.each_mut().map(|to| to.as_mut_ptr());
        let in_place = Pair { len, vectors: grads.map(|grad| grad.cast_const()), grads };
        // SAFETY: as above.
        unsafe { loops::gradients::<S, T, true, false>(isa, in_place, factors) };
        (0..len).for_each(|i| near("gradients in place, x", to[0][i].to_f64(), [a * fy[i], b * fx[i]]));
        (0..len).for_each(|i| near("gradients in place, y", to[1][i].to_f64(), [a * fx[i], 0.6 * fy[i]]));
        let grads = to.each_mut().map(|to| to.as_mut_ptr());
        let plain = GradFactors { a: 1.75, b: [f64::NAN; 2], bounds: [f64::NAN; 2] };
        // SAFETY: as above.
        unsafe { loops::gradients::<S, T, true, true>(isa, Pair { grads, ..pair }, plain) };
        for (given, other) in to.iter().zip([&fy, &fx]) {
            (0..len).for_each(|i| {
                assert_eq!(given[i].to_f64(), T::from_f64(1.75 * other[i]).to_f64(), "plain gradient of {len}, rounded once")
            });
        }
        let [to, _] = &mut to;
        // SAFETY: as above.
        unsafe { loops::gradient_of_sum(isa, to.as_mut_ptr(), a, &before, Some(b), x.as_ptr()) };
        (0..len).for_each(|i| near("gradient_of_sum", to[i].to_f64(), [a * before[i], b * fx[i]]));
        // SAFETY: as above.
        unsafe { loops::gradient_of_sum(isa, to.as_mut_ptr(), a, &before, None, x.as_ptr()) };
        (0..len).for_each(|i| near("gradient_of_sum, plain", to[i].to_f64(), [a * before[i], 0.0]));
        let mut sums = before.clone();
        loops::axpy(isa, &mut sums, a, &x);
        (0..len).for_each(|i| near("axpy", sums[i], [before[i], a * fx[i]]));
        let mut sums = before.clone();
        loops::add_elementwise_products(isa, &mut sums, &x, &y);
        (0..len).for_each(|i| near("add_elementwise_products", sums[i], [before[i], fx[i] * fy[i]]));
        for count in [1, 2, SQUARED_ROWS - 1, SQUARED_ROWS] {
            let rows: Vec<&[T]> = (0..count).map(|row| if row % 2 == 0 { &x[..] } else { &y[..] }).collect();
            let (of_x, of_y) = (count.div_ceil(2) as f64, (count / 2) as f64);
            let mut sums = before.clone();
            loops::add_squares(isa, &mut sums, &rows);
            for i in 0..len {
                let squares = of_x * fx[i] * fx[i] + of_y * fy[i] * fy[i];
                let name = alloc::format!("add_squares of {count} rows of {len}");
                assert_near(&name, sums[i], before[i] + squares, before[i].abs() + squares, f32::EPSILON.into());
            }
        }
        // Equal squares, whose roundings have one sign, of many rows.
        let (tenth, mut sums) = (vec![T::from_f64(0.1); len], vec![0.0; len]);
        (0..16).for_each(|_| loops::add_squares(isa, &mut sums, &[&tenth[..]; SQUARED_ROWS]));
        for sum in sums {
            let exact = (16 * SQUARED_ROWS) as f64 * T::from_f64(0.1).to_f64().powi(2);
            let epsilon = if <T::Compute as Compute>::IS_F64 { f64::EPSILON } else { f32::EPSILON.into() };
            assert!((sum - exact).abs() <= 8.0 * epsilon * exact, "squares of many rows of {len}: {sum} for {exact}");
        }
        // Written to the compute dtype.
        let wide = || before.iter().map(|&x| T::Compute::from_f64(x)).collect::<Vec<_>>();
        let compute = |x: &[f64]| x.iter().map(|&x| T::Compute::from_f64(x)).collect::<Vec<_>>();
        let mut to = wide();
        loops::project_elementwise(isa, &mut to, &fy, &fx, &compute(&fy));
        (0..len).for_each(|i| near("project_elementwise", to[i].to_f64(), [fy[i] * before[i], -fx[i] * fy[i]]));
        let mut to = wide();
        loops::project(isa, &mut to, b, a, &compute(&fx));
        (0..len).for_each(|i| near("project", to[i].to_f64(), [b * before[i], -a * fx[i]]));
        let mut to = wide();
        loops::to_compute(isa, &x, &mut to);
        (0..len).for_each(|i| assert_eq!(to[i].to_f64(), fx[i], "to_compute of {len}"));
        let mut back = vec![T::default(); len];
        loops::from_compute(isa, &to, &mut back, true);
        (0..len).for_each(|i| assert_eq!(back[i].to_f64(), fx[i], "from_compute of {len}"));
        for first in 0..3 {
            let mut streamed = vec![T::default(); len + 4];
            // SAFETY: there is room, and `streamed` is read after the fence only.
            unsafe { stream(isa, &x, streamed.as_mut_ptr().add(first)) };
            fence(isa);
            let written = (0..len + 4).map(|i| i.checked_sub(first).and_then(|i| fx.get(i)).copied().unwrap_or(0.0));
            written.zip(streamed).for_each(|(expected, given)| assert_eq!(given.to_f64(), expected, "stream of {len}"));
        }
    }
}

fn every_loop<T: Element>(epsilon: f64) {
    for len in EXTENTS {
        // SAFETY: the task has no pointers.
        unsafe { simd::for_each_isa(|| EveryLoop::<T> { len, epsilon, _element: core::marker::PhantomData }) };
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
fn strided_views_are_read_and_written_at_any_stride_and_nowhere_else() {
    for len in EXTENTS {
        for stride in [1isize, 3, -2, 0] {
            let memory = wave(3 * len + 3, 0.2);
            let first = if stride < 0 { 2 * len } else { 1 };
            let place = |i: usize| (first as isize + i as isize * stride) as usize;
            let mut buffer = [0.0; CHUNK];
            let strided = Strided { at: memory.as_ptr().wrapping_add(first), stride, len };
            // SAFETY: all places are within `memory`.
            let read = unsafe { strided.gather(&mut buffer) };
            (0..len).for_each(|i| assert_eq!(read[i], memory[place(i)], "stride {stride}"));
            if stride == 0 {
                continue; // Nothing writes to one place twice.
            }
            let mut target = memory.clone();
            let strided = StridedMut { at: target.as_mut_ptr().wrapping_add(first), stride };
            // SAFETY: as above.
            unsafe {
                strided.scatter(&(0..len).map(|i| i as f64).collect::<Vec<_>>());
            }
            for (at, &x) in target.iter().enumerate() {
                let expected = (0..len).find(|&i| place(i) == at).map_or(memory[at], |i| i as f64);
                assert_eq!(x, expected, "stride {stride}, place {at}");
            }
        }
    }
}

/// Elements whose squares, and products with a factor, are beyond f32, by one instruction set.
struct BeyondF32;

impl Task for BeyondF32 {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Isa>(self, isa: S) {
        fn check<S: Isa, T: Element>(isa: S, sizes: &[f64], epsilon: f64) {
            for (&x, &y) in sizes.iter().flat_map(|x| sizes.iter().map(move |y| (x, y))) {
                let (x, y) = ([T::from_f64(x); 70], [T::from_f64(y); 70]);
                let [xx, xy, yy] = loops::dot_and_squares(isa, &x, &y);
                let (x0, y0) = (x[0].to_f64(), y[0].to_f64());
                for (name, given, expected) in [("xx", xx, x0 * x0), ("xy", xy, x0 * y0), ("yy", yy, y0 * y0)] {
                    let name = alloc::format!("{name} of {x0:e} and {y0:e}");
                    assert_near(&name, given, 70.0 * expected, 70.0 * expected, f32::EPSILON.into());
                }
                // As in a gradient: the factor of each is the other's size over a divisor, and no term is larger than `most`.
                let most = 2.0;
                let (a, b) = (0.75 * most / x0, -0.5 * most / y0);
                let mut to = [T::default(); 70];
                let factors = GradFactors { a, b: [b, 0.0], bounds: [most, 0.0] };
                let pair = Pair { len: 70, vectors: [y.as_ptr(), x.as_ptr()], grads: [to.as_mut_ptr(), core::ptr::null_mut()] };
                // SAFETY: all have so many elements.
                unsafe { loops::gradients::<S, T, false, false>(isa, pair, factors) };
                let name = alloc::format!("gradient of {x0:e} and {y0:e}");
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
        assert_near("products beyond f32", loops::dot(isa, &x, &y), 3e20, 70.0 * 1e40, f64::EPSILON);
        let (x, mut to) = ([bf16::from_f64(2e38); 70], [bf16::ZERO; 70]);
        let factors = GradFactors { a: 3.0, b: [-2.5, 0.0], bounds: [6e38, 0.0] };
        let pair = Pair { len: 70, vectors: [x.as_ptr(); 2], grads: [to.as_mut_ptr(), core::ptr::null_mut()] };
        // SAFETY: all have so many elements.
        unsafe { loops::gradients::<S, bf16, false, false>(isa, pair, factors) };
        to.iter().for_each(|to| assert_near("terms beyond f32", to.to_f64(), 1e38, 1e38, bf16::EPSILON.into()));
    }
}

#[test]
fn sums_and_gradients_of_elements_that_f32_cannot_multiply_are_made_in_f64() {
    // SAFETY: the task has no pointers.
    unsafe { simd::for_each_isa(|| BeyondF32) };
}

/// Elements at the edges of the 16-bit dtypes, by one instruction set.
struct Edges;

impl Task for Edges {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Isa>(self, isa: S) {
        fn check<S: Isa, T: Element<Compute = f32>>(isa: S, name: &str, largest: f64, halfway: f64, even: f64) {
            // As many as a register holds and more, so that there is a remainder too.
            for (x, finite, rounded) in [
                (1e39, largest, f64::INFINITY),
                (-1e39, -largest, f64::NEG_INFINITY),
                (f64::INFINITY, largest, f64::INFINITY),
                (halfway, even, even),
                (-0.0, 0.0, 0.0),
            ] {
                for (asked, expected) in [(true, finite), (false, rounded)] {
                    let mut to = [T::default(); 17];
                    loops::from_compute(isa, &[x as f32; 17], &mut to, asked);
                    to.iter().for_each(|to| assert_eq!(to.to_f64(), expected, "{name}: {x:e}, finite {asked}"));
                    loops::from_compute(isa, &[f32::NAN; 17], &mut to, asked);
                    to.iter().for_each(|to| assert!(to.to_f64().is_nan(), "{name}: NaN, finite {asked}"));
                    // The same by way of f64.
                    for (x, expected) in [(x, expected), (f64::NAN, f64::NAN)] {
                        let b = asked.then_some(0.0);
                        // SAFETY: all have so many elements.
                        unsafe { loops::gradient_of_sum(isa, to.as_mut_ptr(), 1.0, &[x; 17], b, [T::default(); 17].as_ptr()) };
                        let same = |to: &T| to.to_f64() == expected || to.to_f64().is_nan() && expected.is_nan();
                        assert!(to.iter().all(same), "{name}: {x:e} by way of f64, finite {asked}");
                    }
                }
            }
        }
        // Halfway between two elements, the even one is nearest.
        check::<S, f16>(isa, "f16", 65504.0, 2049.0, 2048.0);
        check::<S, bf16>(isa, "bf16", bf16::MAX.into(), 257.0, 256.0);
    }
}

#[test]
fn half_precision_rounds_to_even_saturates_where_asked_and_keeps_nan() {
    // SAFETY: the task has no pointers.
    unsafe { simd::for_each_isa(|| Edges) };
}

/// Products that f32 does not hold, of vectors that it does, as where a tiny gradient arrives at a cosine; and factors beyond f32.
struct ProjectionsBeyondF32;

impl Task for ProjectionsBeyondF32 {
    type Output = ();

    unsafe fn run<S: Isa>(self, isa: S) {
        for len in EXTENTS.into_iter().filter(|&len| len > 0) {
            let (x, y) = (vec![1e-8f32; len], vec![1e-37f32; len]);
            let expected = len as f64 * x[0].to_f64() * y[0].to_f64();
            assert_near(
                "dot_of_any",
                loops::dot_of_any(isa, &x, &y) * 1e45,
                expected * 1e45,
                expected * 1e45,
                f32::EPSILON.into(),
            );
            let (x, mut to) = (vec![1e-9f32; len], vec![2e31f32; len]);
            let expected = to[0].to_f64() - 1e40 * x[0].to_f64();
            loops::project(isa, &mut to, 1.0, 1e40, &x);
            to.iter().for_each(|to| assert_near("project", to.to_f64(), expected, 2e31, f32::EPSILON.into()));
        }
    }
}

#[test]
fn projections_keep_their_digits_where_f32_would_lose_them() {
    // SAFETY: the task has no pointers.
    unsafe { simd::for_each_isa(|| ProjectionsBeyondF32) };
}
