//! The kernels against plain loops, at extents around the width of a register.

use alloc::vec::Vec;

mod case;
mod cosines;
mod loops;
mod memory;
mod products;
mod simd;
#[cfg(feature = "rayon")]
mod threads;

const EXTENTS: [usize; 8] = [0, 1, 15, 16, 17, 127, 128, 129];

/// Distinct elements of both signs.
fn wave(count: usize, phase: f64) -> Vec<f64> {
    (0..count).map(|i| 1.3 * (phase + i as f64 * 1.618).sin() + 0.2).collect()
}

fn assert_near(name: &str, given: f64, expected: f64, scale: f64, epsilon: f64) {
    let allowed = 16.0 * epsilon * scale + f64::MIN_POSITIVE;
    assert!((given - expected).abs() <= allowed, "{name}: {given:e}, not {expected:e}; allowed {allowed:e}");
}
