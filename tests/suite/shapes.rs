//! Output shapes without tensors, with unknown sizes.

use burn_dot::{Axes, DotConfig};

use crate::{
    cases::table,
    oracle,
    run::{product, wave},
};

type Sizes<'a> = &'a [Option<usize>];

fn shape(config: DotConfig, lhs: Sizes, rhs: Sizes) -> Vec<Option<usize>> {
    config.output_shape(lhs, rhs).unwrap()
}

#[test]
fn output_shape_is_the_shape_of_the_output() {
    for case in table() {
        let known = |shape: &[usize]| shape.iter().map(|&size| Some(size)).collect::<Vec<_>>();
        let expected =
            oracle::output_shape(&product(&case.config, case.lhs.len(), case.rhs.len()), &wave(case.lhs, 0.0).shape, case.rhs);
        assert_eq!(shape(case.config, &known(case.lhs), &known(case.rhs)), known(&expected));
    }
}

#[test]
fn nothing_free_leaves_a_trailing_one_under_a_batch_of_one_axis() {
    let two = [Some(5), Some(2)];
    assert_eq!(shape(DotConfig::new(1), &two, &two), [Some(5), Some(1)]);
    assert_eq!(shape(DotConfig::new(0).with_batch_dims(0), &[Some(3)], &[Some(3)]), [Some(1)], "a number is [1] in Burn");
    let three = [Some(5), Some(2), Some(7)];
    assert_eq!(shape(DotConfig::new(2).with_batch_dims(2), &three, &three), [Some(5), Some(2)]);
}

#[test]
fn unknown_sizes_stay_unknown_unless_the_other_input_knows() {
    let plain = DotConfig::new((2, 1));
    assert_eq!(
        shape(plain.clone(), &[None, Some(3), None], &[None, Some(5), None]),
        [None, Some(3), None],
        "unknown batch and unknown free size"
    );
    assert_eq!(shape(plain.clone(), &[None, None, None], &[Some(7), None, Some(4)]), [Some(7), None, Some(4)]);
    let broadcast = plain.with_broadcast_batch(true);
    assert_eq!(shape(broadcast.clone(), &[None, Some(3), None], &[Some(1), None, Some(4)]), [None, Some(3), Some(4)]);
    assert_eq!(shape(broadcast, &[None, Some(3), None], &[Some(6), None, Some(4)]), [Some(6), Some(3), Some(4)]);
}

#[test]
fn unknown_sizes_do_not_hide_known_disagreement() {
    let error = DotConfig::new(1).output_shape(&[None, Some(3)], &[None, Some(4)]).unwrap_err();
    assert_eq!(error.to_string(), "Dot: lhs axis 1 has size 3 but rhs axis 1 has size 4; lhs [?, 3], rhs [?, 4]");
}

#[test]
fn axes_are_written_in_every_form() {
    assert_eq!(Axes::from(2), Axes::Both(2));
    assert_eq!(Axes::from(-1i64), Axes::Both(-1));
    assert_eq!(Axes::from(2usize), Axes::Both(2));
    assert_eq!(Axes::from((1, 2)), Axes::Pair(1, 2));
    assert_eq!(Axes::from((1usize, -1)), Axes::Pair(1, -1));
    assert_eq!(Axes::from([1, 2]), Axes::Pair(1, 2));
    assert_eq!(Axes::from([(1, 2)]), Axes::Pairs(vec![(1, 2)]));
    assert_eq!(Axes::from(vec![(1, -2), (2, 1)]), Axes::Pairs(vec![(1, -2), (2, 1)]));
    assert_eq!(Axes::from(u64::MAX), Axes::Both(isize::MAX), "no tensor has such an axis; forward says so");
}
