//! The table of products: every rank, sign of axis and extent around lane widths, each against the oracle.
//! Sizes are pairwise distinct where they need not agree, so that no swapped index can hide.

use burn_dot::{Axes, DotConfig};

use crate::{
    device::{float_dtypes, max_rank},
    run::{LAYOUTS, Layout, assert_exact, wave},
};

/// Shapes of lhs and rhs, and how they meet.
pub struct Case {
    pub lhs: &'static [usize],
    pub rhs: &'static [usize],
    pub config: DotConfig,
}

fn case(lhs: &'static [usize], rhs: &'static [usize], axes: impl Into<Axes>) -> Case {
    Case { lhs, rhs, config: DotConfig::new(axes) }
}

fn batched(batch_dims: usize, case: Case) -> Case {
    Case { config: case.config.with_batch_dims(batch_dims), ..case }
}

fn broadcast(case: Case) -> Case {
    Case { config: case.config.with_broadcast_batch(true), ..case }
}

/// Every case that the device has the rank for.
pub fn table() -> Vec<Case> {
    let known = |shape: &[usize]| shape.iter().map(|&size| Some(size)).collect::<Vec<_>>();
    let rank = |case: &Case| case.config.output_shape(&known(case.lhs), &known(case.rhs)).unwrap().len();
    every_case().into_iter().filter(|case| rank(case) <= max_rank()).collect()
}

fn every_case() -> Vec<Case> {
    vec![
        // Nothing free.
        case(&[3, 4], &[3, 4], 1),
        case(&[3, 4], &[3, 4], -1),
        case(&[1, 1], &[1, 1], (1, -1)),
        case(&[2, 127], &[2, 127], 1),
        case(&[2, 128], &[2, 128], (-1, 1)),
        case(&[2, 129], &[2, 129], (1, 1)),
        // One side free: matrix times vector.
        case(&[2, 3], &[2, 3, 5], 1),
        case(&[2, 3], &[2, 5, 3], (1, 2)),
        case(&[2, 5, 3], &[2, 3], (2, 1)),
        case(&[2, 5, 3], &[2, 3], -1),
        case(&[2, 17], &[2, 16, 17], (-1, -1)),
        // Matrix times matrix, each axis in each place.
        case(&[2, 3, 5], &[2, 5, 4], (2, 1)),
        case(&[2, 5, 3], &[2, 5, 4], 1),
        case(&[2, 3, 5], &[2, 4, 5], 2),
        case(&[2, 5, 3], &[2, 4, 5], (1, 2)),
        case(&[2, 5, 3], &[2, 4, 5], (-2, -1)),
        case(&[1, 15, 16], &[1, 16, 17], (2, 1)),
        case(&[1, 17, 15], &[1, 16, 15], 2),
        case(&[3, 1, 6], &[3, 6, 1], (2, 1)),
        // More free axes than two, never paired with each other.
        case(&[2, 3], &[2, 4, 5, 3], (1, 3)),
        case(&[2, 3, 4, 5], &[2, 4], (2, 1)),
        case(&[2, 3, 4, 5], &[2, 6, 4], (2, -1)),
        case(&[2, 3, 4, 5], &[2, 3, 5, 6], (3, 2)),
        case(&[2, 3, 4, 5], &[2, 6, 7, 3], (1, 3)),
        case(&[2, 3, 4, 5], &[2, 4, 6, 7], (-2, 1)),
        case(&[2, 3, 2, 5, 4], &[2, 4], (-1, 1)),
        case(&[2, 3, 2, 4, 5], &[2, 6, 4, 3], (3, 2)),
        case(&[1, 2, 3, 4, 2], &[1, 2, 2, 3, 5], (2, 3)),
        // No batch: every row with every row.
        batched(0, case(&[5], &[5], 0)),
        batched(0, case(&[3, 5], &[4, 5], 1)),
        batched(0, case(&[5, 3], &[4, 2, 5], (0, -1))),
        batched(0, case(&[5], &[3, 5], (0, 1))),
        // Two shared axes, as heads of attention; three.
        batched(2, case(&[2, 3, 4, 6], &[2, 3, 5, 6], 3)),
        batched(2, case(&[2, 3, 6], &[2, 3, 6], 2)),
        batched(2, case(&[2, 3, 6], &[2, 3, 6, 4], 2)),
        batched(3, case(&[2, 3, 2, 4, 5], &[2, 3, 2, 5], (-1, 3))),
        // Several axes contracted together.
        case(&[2, 3, 4], &[2, 4, 3], [(1, 2), (2, 1)]),
        case(&[2, 3, 4], &[2, 3, 4], [(2, 2), (1, 1)]),
        case(&[2, 3, 4, 5], &[2, 5, 6, 3], [(1, 3), (-1, 1)]),
        batched(2, case(&[2, 3, 4, 5, 6], &[2, 3, 6, 7, 4], [(2, 4), (4, 2)])),
        batched(0, case(&[2, 3, 4], &[4, 2, 5], [(0, 1), (2, 0)])),
        // A batch of 1 repeated on request, on either side and in part.
        broadcast(case(&[1, 3, 5], &[4, 5, 2], (2, 1))),
        broadcast(case(&[4, 3, 5], &[1, 5, 2], (2, 1))),
        broadcast(case(&[1, 6], &[3, 6], 1)),
        broadcast(batched(2, case(&[1, 3, 4, 6], &[2, 1, 5, 6], 3))),
        broadcast(batched(2, case(&[2, 1, 6], &[1, 3, 6], 2))),
    ]
}

fn check(normalize: bool, layouts: &[Layout]) {
    for dtype in float_dtypes() {
        for Case { lhs, rhs, config } in table() {
            for &layout in layouts {
                let config = config.clone().with_normalize(normalize);
                let name = format!("{lhs:?} · {rhs:?}, {config:?}");
                assert_exact(&name, &config, dtype, layout, &wave(lhs, 0.1), &wave(rhs, 0.4));
            }
        }
    }
}

#[test]
fn every_pairing_agrees_with_the_oracle_forward_and_backward() {
    check(false, &[Layout::Contiguous]);
}

#[test]
fn every_normalized_pairing_agrees_with_the_oracle_forward_and_backward() {
    check(true, &[Layout::Contiguous]);
}

#[test]
fn transposed_sliced_and_flipped_inputs_give_what_contiguous_ones_give() {
    check(false, &LAYOUTS[1..]);
    check(true, &LAYOUTS[1..]);
}
