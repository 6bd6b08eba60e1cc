//! The in-batch softmax: values against plain loops, gradients against differences.

use burn::module::{Module, Param};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::prelude::*;
use burn::tensor::{DType, Distribution};
use burn_gradcheck::GradCheck;
use burn_retrieval::{Embed, InBatchSoftmax, InBatchSoftmaxConfig, Pairs, Reduction, Similarity, Temperature, gradient_cache};

use super::reference::score;
use crate::device::{backend, device, float_dtypes, float_dtypes_with_exp, is_ieee, turn_to_draw};
use crate::run::wave;

const BATCH: usize = 5;
const HARD: usize = 3;
const COLUMNS: usize = 4;

fn rows(count: usize, phase: f64, dtype: DType) -> Tensor<2> {
    let wave = wave(&[count, COLUMNS], phase);
    Tensor::from_data(TensorData::new(wave.data, [count, COLUMNS]), (&device(), dtype))
}

/// What a batch may have beside its pairs.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Extra {
    HardNegatives,
    Ids,
    SamplingProbability,
    Weights,
}

use Extra::*;

const EXTRAS: [&[Extra]; 6] =
    [&[], &[HardNegatives], &[Ids], &[SamplingProbability], &[Weights], &[HardNegatives, Ids, SamplingProbability, Weights]];

const IDS: [i64; BATCH + HARD] = [7, 3, 7, 1, 3, 3, 9, 7];
const PROBABILITY: [f64; BATCH + HARD] = [0.5, 0.1, 0.02, 0.3, 0.9, 0.05, 0.2, 0.6];
const WEIGHTS: [f64; BATCH] = [1.0, 0.5, 0.0, 3.0, 0.25];

fn candidates(extras: &[Extra]) -> usize {
    BATCH + if extras.contains(&HardNegatives) { HARD } else { 0 }
}

fn pairs(queries: Tensor<2>, all: Tensor<2>, extras: &[Extra]) -> Pairs {
    let (device, dtype, count) = (queries.device(), queries.dtype(), candidates(extras));
    let floats = |values: &[f64]| Tensor::<1>::from_data(values, (&device, dtype));
    let mut pairs = Pairs::new(queries, all.clone().slice(0..BATCH));
    for extra in extras {
        pairs = match extra {
            HardNegatives => pairs.with_hard_negatives(all.clone().slice(BATCH..count)),
            Ids => pairs.with_candidate_ids(Tensor::from_data(&IDS[..count], &device)),
            SamplingProbability => pairs.with_candidate_sampling_probability(floats(&PROBABILITY[..count])),
            Weights => pairs.with_sample_weight(floats(&WEIGHTS)),
        };
    }
    pairs
}

fn matrix(x: &Tensor<2>) -> Vec<Vec<f64>> {
    x.to_data().iter::<f64>().collect::<Vec<_>>().chunks(COLUMNS).map(<[f64]>::to_vec).collect()
}

/// The definition, in plain loops.
fn expected(config: &InBatchSoftmaxConfig, queries: &Tensor<2>, all: &Tensor<2>, extras: &[Extra]) -> f64 {
    let (q, c) = (matrix(queries), matrix(all));
    let (Temperature::Fixed(temperature) | Temperature::Learned(temperature)) = config.temperature;
    let logit = |i: usize, j: usize| score(&q[i], &c[j], config.similarity == Similarity::Cosine) / temperature;
    let log_q = |j: usize| if extras.contains(&SamplingProbability) { PROBABILITY[j].ln() } else { 0.0 };
    let hit = |i: usize, j: usize| i != j && extras.contains(&Ids) && IDS[i] == IDS[j];
    let weight = |i: usize| if extras.contains(&Weights) { WEIGHTS[i] } else { 1.0 };
    let forward = |i: usize| {
        let sum: f64 =
            (0..c.len()).filter(|&j| !hit(i, j)).map(|j| (logit(i, j) - log_q(j) - logit(i, i) + log_q(i)).exp()).sum();
        sum.ln()
    };
    let backward = |i: usize| (0..BATCH).filter(|&j| !hit(i, j)).map(|j| (logit(j, i) - logit(i, i)).exp()).sum::<f64>().ln();
    let each = |i: usize| if config.symmetric { (forward(i) + backward(i)) / 2.0 } else { forward(i) };
    let sum: f64 = (0..BATCH).map(|i| weight(i) * each(i)).sum();
    match config.reduction {
        Reduction::Sum => sum,
        Reduction::Mean => sum / (0..BATCH).map(weight).sum::<f64>(),
    }
}

fn configs() -> impl Iterator<Item = InBatchSoftmaxConfig> {
    let base = [
        InBatchSoftmaxConfig::new(),
        InBatchSoftmaxConfig::new().with_similarity(Similarity::Dot).with_temperature(Temperature::Fixed(1.0)),
        InBatchSoftmaxConfig::new().with_temperature(Temperature::Learned(0.07)).with_reduction(Reduction::Sum),
    ];
    base.into_iter().flat_map(|config| [config.clone(), config.with_symmetric(true)])
}

#[test]
fn every_option_gives_what_plain_loops_give() {
    for config in configs() {
        for extras in EXTRAS {
            for chunk in [None, Some(1), Some(2), Some(9)] {
                let dtype = float_dtypes_with_exp()[0];
                let (queries, all) = (rows(BATCH, 0.3, dtype), rows(candidates(extras), 1.1, dtype));
                let expected = expected(&config, &queries, &all, extras);
                let given: f64 =
                    config.clone().with_chunk(chunk).init(&device()).forward_pairs(pairs(queries, all, extras)).into_scalar();
                // A learned temperature is a parameter of f32.
                let tolerance =
                    if matches!(config.temperature, Temperature::Learned(_)) || dtype == DType::F32 { 1e-5 } else { 1e-12 };
                assert!(
                    (given - expected).abs() <= tolerance * expected.abs().max(1.0),
                    "{given}, not {expected}: {config:?}, {extras:?}, chunk {chunk:?}"
                );
            }
        }
    }
}

#[test]
fn every_option_passes_the_gradient_check() {
    let dtypes: Vec<_> = float_dtypes_with_exp().into_iter().filter(|dtype| dtype.size() >= 4).map(Into::into).collect();
    // The loss is the same operations on every backend, which on others than flex are slow.
    let (extras, chunks) =
        if backend() == "flex" { (&EXTRAS[..], &[None, Some(2)][..]) } else { (&EXTRAS[5..], &[Some(2)][..]) };
    for config in configs() {
        for &extras in extras {
            for &chunk in chunks {
                let loss = config.clone().with_chunk(chunk);
                let inputs = (rows(BATCH, 0.3, DType::F32), rows(candidates(extras), 1.1, DType::F32));
                let f = |(queries, all): (Tensor<2>, Tensor<2>)| {
                    let device = queries.device();
                    loss.init(&device).forward_pairs(pairs(queries, all, extras))
                };
                let report = GradCheck::new(&device()).precision(dtypes.clone()).check(f, inputs);
                assert!(report.is_ok(), "{config:?}, {extras:?}, chunk {chunk:?}\n{report}");
            }
        }
    }
}

#[test]
fn a_learned_temperature_passes_the_gradient_check() {
    for symmetric in [false, true] {
        let config = InBatchSoftmaxConfig::new().with_temperature(Temperature::Learned(0.3)).with_symmetric(symmetric);
        let inputs = (rows(BATCH, 0.3, DType::F32), rows(BATCH + HARD, 1.1, DType::F32));
        let f =
            |loss: &InBatchSoftmax, (queries, all): (Tensor<2>, Tensor<2>)| loss.forward_pairs(pairs(queries, all, EXTRAS[5]));
        GradCheck::new(&device()).check_module_with(&config.init(&device()), inputs, f).assert_ok();
    }
}

#[test]
fn a_learned_temperature_at_its_bounds_moves_inwards_only() {
    let device = device().autodiff();
    let grad = |logit_scale: f64, queries: Tensor<2>, candidates: Tensor<2>| {
        let mut loss = InBatchSoftmaxConfig::new().with_temperature(Temperature::Learned(0.07)).init(&device);
        loss.logit_scale = Some(Param::from_tensor(Tensor::from_data([logit_scale], &device)));
        let grads = loss.forward(queries.autodiff(), candidates.autodiff()).backward();
        let parameter = loss.logit_scale.as_ref().unwrap().val();
        parameter.grad(&grads).expect("the temperature has a gradient").into_scalar::<f64>()
    };
    let (right, near) = (rows(3, 0.3, DType::F32), rows(3, 0.5, DType::F32));
    let wrong = near.clone().flip([0]);
    // Where every query finds its own a smaller temperature is better, where none does a larger one.
    assert_eq!(grad(4.7, right.clone(), right.clone()), 0.0, "outwards, above");
    assert!(grad(4.7, right.clone(), wrong.clone()) > 0.0, "inwards, from above");
    assert_eq!(grad(-0.1, right.clone(), wrong.clone()), 0.0, "outwards, below");
    assert!(grad(-0.1, right.clone(), right.clone()) < 0.0, "inwards, from below");
    assert!(grad(2.0, right.clone(), right) < 0.0, "between");
}

#[test]
fn no_temperature_and_no_norm_overflows() {
    if !is_ieee() {
        return;
    }
    let device = device().autodiff();
    for temperature in [1e-30, 1e-4, 1.0, 1e30] {
        for scale in [1e-20, 1.0, 1e20] {
            let loss = InBatchSoftmaxConfig::new().with_temperature(Temperature::Fixed(temperature)).init(&device);
            let queries = (rows(4, 0.3, DType::F32) * scale).autodiff().require_grad();
            // A row of zeros has no direction.
            let candidates = rows(4, 0.4, DType::F32).slice_fill(1..2, 0.0).autodiff().require_grad();
            let value = loss.forward(queries.clone(), candidates.clone());
            let grads = value.backward();
            let all = [queries.grad(&grads), candidates.grad(&grads)].map(|grad| grad.unwrap().into_data());
            let name = format!("temperature {temperature:e}, scale {scale:e}");
            assert!(value.into_scalar::<f32>().is_finite(), "{name}");
            assert!(all.iter().all(|grad| grad.iter::<f32>().all(f32::is_finite)), "{name}: {all:?}");
        }
    }
}

#[test]
fn the_loss_of_dot_products_near_the_end_of_the_range_is_finite() {
    if !is_ieee() {
        return;
    }
    let device = device().autodiff();
    let loss = InBatchSoftmaxConfig::new().with_similarity(Similarity::Dot).with_reduction(Reduction::Sum);
    // The first query scores 2e19 with the wrong candidate, and 0 with its own.
    let rows = |rows: [[f64; 2]; 2]| (Tensor::<2>::from_data(rows, (&device, DType::F32)) * 1e10).require_grad();
    let (queries, candidates) = (rows([[1.0, 0.0], [0.0, 1.0]]), rows([[0.0, 0.0], [0.2, 0.2]]));
    let loss = loss.with_temperature(Temperature::Fixed(1e-19)).init(&device);
    let value = loss.forward(queries.clone(), candidates.clone());
    let grads = value.backward();
    let value = value.into_scalar::<f64>();
    assert!((value / 2e38 - 1.0).abs() < 1e-6, "{value}");
    for x in [queries, candidates] {
        assert!(x.grad(&grads).unwrap().into_data().iter::<f32>().all(f32::is_finite));
    }
}

#[test]
fn a_gradient_that_overflows_leaves_the_loss_finite() {
    if !is_ieee() {
        return;
    }
    let device = device().autodiff();
    let loss = InBatchSoftmaxConfig::new().with_similarity(Similarity::Dot).with_temperature(Temperature::Fixed(1e-30));
    let rows = |rows: [[f64; 2]; 2], scale: f64| (Tensor::<2>::from_data(rows, (&device, DType::F32)) * scale).require_grad();
    // Scores up to 1e30; the gradient of the first query is 1e10 / 1e-30.
    let queries = rows([[1.0, 0.0], [0.0, 1.0]], 1e-10);
    let candidates = rows([[0.0, 0.0], [1.0, 1.0]], 1e10);
    let value = loss.init(&device).forward(queries.clone(), candidates);
    let grads = value.backward();
    assert!((value.into_scalar::<f64>() / 5e29 - 1.0).abs() < 1e-6);
    let grad = queries.grad(&grads).unwrap().into_data().iter::<f32>().collect::<Vec<_>>();
    assert_eq!(grad[0], f32::MAX, "{grad:?}");
}

#[test]
fn a_small_loss_and_its_gradient_keep_their_digits() {
    // One negative at a right angle: the loss is ln(1 + e^-30) = 9.36e-14, far below the ε of f32 beside 1.
    let device = device().autodiff();
    let unit = Tensor::<2>::from_data([[1.0, 0.0], [0.0, 1.0]], (&device, DType::F32));
    let loss = InBatchSoftmaxConfig::new().with_temperature(Temperature::Fixed(1.0 / 30.0)).init(&device);
    let queries = unit.clone().require_grad();
    let value = loss.forward(queries.clone(), unit);
    let grads = value.backward();
    let exact = (-30f64).exp();
    assert!((value.into_scalar::<f64>() / exact - 1.0).abs() < 1e-4);
    let grad = queries.grad(&grads).unwrap().into_data().iter::<f64>().collect::<Vec<_>>();
    assert!((grad[1] / (0.5 * 30.0 * exact) - 1.0).abs() < 1e-4, "{grad:?}");
}

#[test]
fn half_precision_is_computed_in_f32() {
    for dtype in float_dtypes().into_iter().filter(|dtype| dtype.size() == 2) {
        let (queries, candidates) = (rows(BATCH, 0.3, dtype), rows(BATCH, 1.1, dtype));
        let loss = InBatchSoftmaxConfig::new().init(&device());
        let half = loss.forward(queries.clone(), candidates.clone());
        assert_eq!(half.dtype(), DType::F32);
        let wide = loss.forward(queries.cast(DType::F32), candidates.cast(DType::F32));
        assert_eq!(half.into_data(), wide.into_data(), "{dtype:?}");
    }
}

#[test]
fn weights_of_zero_and_an_empty_batch_give_zero() {
    let loss = InBatchSoftmaxConfig::new().init(&device());
    let none = Pairs::new(rows(2, 0.3, DType::F32), rows(2, 0.4, DType::F32)).with_sample_weight(Tensor::zeros([2], &device()));
    assert_eq!(loss.forward_pairs(none).into_scalar::<f32>(), 0.0);
    let empty = Tensor::<2>::zeros([0, 3], &device());
    assert_eq!(loss.forward(empty.clone(), empty.clone()).into_scalar::<f32>(), 0.0);
    let queries = empty.clone().autodiff().require_grad();
    let grads = loss.forward(queries.clone(), empty.autodiff()).backward();
    assert_eq!(queries.grad(&grads).unwrap().dims(), [0, 3]);
}

#[test]
fn gradient_checkpointing_changes_no_gradient() {
    let grads = |device: Device| {
        let loss = InBatchSoftmaxConfig::new().with_temperature(Temperature::Learned(0.1)).with_symmetric(true).init(&device);
        let [queries, candidates] = [0.3, 1.1].map(|phase| {
            let rows = rows(BATCH, phase, DType::F32).into_data();
            Tensor::<2>::from_data(rows, &device).require_grad()
        });
        let all = Pairs::new(queries.clone() * 2.0, candidates.clone().exp());
        let grads = loss.forward_pairs(all.with_candidate_ids(Tensor::from_data(&IDS[..BATCH], &device))).backward();
        let scale = loss.logit_scale.as_ref().unwrap().val().grad(&grads).unwrap().into_data();
        [queries, candidates].map(|x| x.grad(&grads).unwrap().into_data()).into_iter().chain([scale]).collect::<Vec<_>>()
    };
    let autodiff = device().autodiff();
    assert_eq!(grads(autodiff.clone().gradient_checkpointing()), grads(autodiff));
}

#[test]
fn cached_gradients_are_those_of_the_whole_batch() {
    #[derive(Module, Debug)]
    struct Towers {
        queries: nn::Linear,
        candidates: nn::Linear,
        loss: InBatchSoftmax,
    }
    let _turn = turn_to_draw();
    let device = device().autodiff();
    device.seed(5);
    println!("seed 5");
    let towers = Towers {
        queries: nn::LinearConfig::new(6, 3).init(&device),
        candidates: nn::LinearConfig::new(6, 3).init(&device),
        loss: InBatchSoftmaxConfig::new().with_temperature(Temperature::Learned(0.1)).with_symmetric(true).init(&device),
    };
    let x = Tensor::<2>::random([7, 6], Distribution::Normal(0.0, 1.0), &device);
    let queries = |rows: core::ops::Range<usize>| towers.queries.forward(x.clone().slice(rows));
    let candidates = |rows: core::ops::Range<usize>| towers.candidates.forward(x.clone().slice(rows) * 2.0 + 0.3);
    let hard = |rows: core::ops::Range<usize>| towers.candidates.forward(x.clone().slice(rows) - 0.2);
    let loss = |[q, c, h]: [Tensor<2>; 3]| towers.loss.forward_pairs(Pairs::new(q, c).with_hard_negatives(h));

    let whole = loss([queries(0..7), candidates(0..7), hard(0..5)]);
    let expected = GradientsParams::from_grads(whole.backward(), &towers);
    let mut accumulator = GradientsAccumulator::new();
    let cached = gradient_cache([(7, &queries), (7, &candidates), (5, &hard)], 3, loss, |grads| {
        accumulator.accumulate(&towers, GradientsParams::from_grads(grads, &towers));
    });
    let given = accumulator.grads();
    let tolerance = burn::tensor::Tolerance::<f32>::rel_abs(1e-4, 1e-5);
    cached.into_data().assert_approx_eq(&whole.inner().into_data(), tolerance);
    for (name, layer) in [("queries", &towers.queries), ("candidates", &towers.candidates)] {
        let of = |grads: &GradientsParams| grads.get::<2>(layer.weight.id).expect(name).into_data();
        of(&given).assert_approx_eq(&of(&expected), tolerance);
    }
    let of = |grads: &GradientsParams| grads.get::<1>(towers.loss.logit_scale.as_ref().unwrap().id).unwrap().into_data();
    of(&given).assert_approx_eq(&of(&expected), tolerance);
}

#[test]
fn a_frozen_tower_gets_no_cached_gradients() {
    let _turn = turn_to_draw();
    let device = device().autodiff();
    device.seed(6);
    println!("seed 6");
    let trained: nn::Linear = nn::LinearConfig::new(COLUMNS, 3).init(&device);
    let frozen: nn::Linear = nn::LinearConfig::new(COLUMNS, 3).init(&device).no_grad();
    let plain = frozen.clone().valid();
    let loss = InBatchSoftmaxConfig::new().init(&device);
    let x = Tensor::<2>::from_data(rows(BATCH, 0.3, DType::F32).into_data(), &device);
    let train = |rows: core::ops::Range<usize>| trained.forward(x.clone().slice(rows));
    let expected = GradientsParams::from_grads(loss.forward(train(0..BATCH), frozen.forward(x.clone())).backward(), &trained);
    let of = |grads: &GradientsParams| grads.get::<2>(trained.weight.id).unwrap().into_data();
    let tolerance = burn::tensor::Tolerance::<f32>::rel_abs(1e-4, 1e-5);
    for is_plain in [false, true] {
        let other = |rows: core::ops::Range<usize>| match is_plain {
            true => plain.forward(x.clone().inner().slice(rows)),
            false => frozen.forward(x.clone().slice(rows)),
        };
        let (mut accumulator, mut calls) = (GradientsAccumulator::new(), 0);
        gradient_cache(
            [(BATCH, &train), (BATCH, &other)],
            2,
            |[q, c]| loss.forward(q, c),
            |grads| {
                calls += 1;
                accumulator.accumulate(&trained, GradientsParams::from_grads(grads, &trained));
            },
        );
        // Of the loss, and of three chunks of one tower.
        assert_eq!(calls, 4);
        of(&accumulator.grads()).assert_approx_eq(&of(&expected), tolerance);
    }
    let towers: [(usize, Embed); 2] =
        [(BATCH, &|rows| plain.forward(x.clone().inner().slice(rows))), (BATCH, &|rows| frozen.forward(x.clone().slice(rows)))];
    let value = gradient_cache(towers, 2, |[q, c]| loss.forward(q, c), |_| panic!("no tower is trained"));
    assert!(value.into_scalar::<f32>() > 0.0);
}

#[test]
fn every_error_of_a_loss_names_what_it_is_about() {
    let init = |config: InBatchSoftmaxConfig| config.try_init(&device()).unwrap_err().to_string();
    let forward = |pairs: Pairs| InBatchSoftmaxConfig::new().init(&device()).try_forward_pairs(pairs).unwrap_err().to_string();
    let two = || rows(2, 0.1, DType::F32);
    let config = InBatchSoftmaxConfig::new;
    let cases = [
        (
            init(config().with_temperature(Temperature::Fixed(0.0))),
            "InBatchSoftmax: a temperature of 0.0 is not from 1e-30 to 1e30",
        ),
        (
            init(config().with_temperature(Temperature::Fixed(1e-39))), // whose inverse f32 cannot hold
            "InBatchSoftmax: a temperature of 1e-39 is not from 1e-30 to 1e30",
        ),
        (
            init(config().with_temperature(Temperature::Learned(2.0))),
            "InBatchSoftmax: a temperature of 2.0 is not from 0.01 to 1, where a learned one is kept",
        ),
        (init(config().with_chunk(Some(0))), "InBatchSoftmax: a chunk of 0 rows holds nothing; give 1 or more"),
        (
            forward(Pairs::new(two(), rows(3, 0.1, DType::F32))),
            "InBatchSoftmax: queries [2, 4] and candidates [3, 4] must have the same shape; further candidates go to with_hard_negatives",
        ),
        (
            forward(Pairs::new(two(), two()).with_candidate_ids(Tensor::from_data([1], &device()))),
            "candidate ids: there are 1, but must be 2, one for each",
        ),
        (
            forward(Pairs::new(two(), two()).with_sample_weight(Tensor::ones([3], &device()))),
            "sample weights: there are 3, but must be 2, one for each",
        ),
        (
            forward(Pairs::new(two(), two()).with_hard_negatives(Tensor::ones([1, 3], &device()))),
            "InBatchSoftmax: queries have 4 columns but hard negatives have 3; queries [2, 4], hard negatives [1, 3]",
        ),
    ];
    for (given, text) in cases {
        assert_eq!(given, text);
    }
    if device() != Device::flex() {
        let ids = Tensor::from_data([1, 2], &Device::flex());
        let text = forward(Pairs::new(two(), two()).with_candidate_ids(ids));
        assert!(text.contains("candidate ids (") && text.ends_with("move one of them with to_device"), "{text}");
    }
}
