//! The ranking metrics as Burn's own training uses them.

use std::{env, fs, process, sync::Arc};

use burn::data::dataloader::{DataLoaderBuilder, Progress, batcher::Batcher};
use burn::data::dataset::InMemDataset;
use burn::module::Param;
use burn::prelude::*;
use burn::train::metric::{Metric as _, MetricAttributes, MetricMetadata, Numeric, NumericEntry};
use burn::train::{EvaluationResult, EvaluatorBuilder, InferenceStep};
use burn_retrieval::metrics::{Metric, RankingInput, RankingMetric, RankingOutput, Relevance};
use burn_retrieval::{Catalogue, Hits, Similarity};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::device::device;

const NAMES: [(Metric, &str); 6] = [
    (Metric::Recall, "Recall@10"),
    (Metric::Precision, "Precision@10"),
    (Metric::HitRate, "HitRate@10"),
    (Metric::ReciprocalRank, "MRR@10"),
    (Metric::AveragePrecision, "MAP@10"),
    (Metric::Ndcg, "nDCG@10"),
];

fn metadata() -> MetricMetadata {
    let progress = Progress { items_processed: 0, items_total: 1, unit: None };
    MetricMetadata { progress, iteration: None, lr: None }
}

/// What is relevant to a query: items, and how much.
type Gains = Vec<(usize, f64)>;

/// Ten hits among forty items for each query, without repetition, and up to five items that are relevant to it, most of them hits.
fn queries(count: usize, rng: &mut StdRng) -> (Vec<Vec<i64>>, Vec<Gains>) {
    let query = |_| {
        let (start, step) = (rng.random_range(0..40), [1, 3, 7, 9][rng.random_range(0..4)]);
        let hits: Vec<i64> = (0..10).map(|i| (start + i * step) % 40).collect();
        let relevant = (0..rng.random_range(0..6)).map(|_| {
            let item = if rng.random_bool(0.7) { hits[rng.random_range(0..10)] } else { rng.random_range(0..40) };
            (item as usize, f64::from(rng.random_range(1..4)))
        });
        let relevant = relevant.collect();
        (hits, relevant)
    };
    (0..count).map(query).unzip()
}

fn input(hits: &[Vec<i64>], gains: &[Gains]) -> RankingInput {
    let shape = [hits.len(), 10];
    let indices = Tensor::<2, Int>::from_data(TensorData::new(hits.concat(), shape), &device());
    RankingInput { hits: Hits { scores: Tensor::zeros(shape, &device()), indices }, relevance: Relevance::graded(gains) }
}

fn current(entry: Option<NumericEntry>) -> (f64, usize) {
    match entry {
        Some(NumericEntry::Aggregated { aggregated_value, count }) => (aggregated_value, count),
        entry => panic!("{entry:?} is not a mean of a number of queries"),
    }
}

#[test]
fn an_epoch_in_uneven_batches_gives_what_the_plain_function_gives_for_all() {
    let (hits, gains) = queries(100, &mut StdRng::seed_from_u64(11));
    // CubeCL's own operations on an empty batch panic in builds with overflow checks.
    let batches: &[usize] = if crate::device::is_cubecl() { &[1, 40, 7, 52] } else { &[1, 40, 0, 7, 52] };
    for (metric, _) in NAMES {
        for k in [1, 5, 10] {
            let mut epoch = RankingMetric::new(metric, k);
            // A second epoch begins from nothing.
            for _ in 0..2 {
                let mut begin = 0;
                for &size in batches {
                    let batch = begin..begin + size;
                    let part = input(&hits[batch.clone()], &gains[batch.clone()]);
                    epoch.update(&part, &metadata()).unwrap();
                    let (value, count) = current(epoch.value());
                    assert_eq!(count, size);
                    let expected = metric.try_mean(&part.hits, &part.relevance, k).unwrap();
                    assert!(value == expected || size == 0 && value.is_nan(), "{metric:?}@{k}, {batch:?}: {value}");
                    begin = batch.end;
                    let so_far = input(&hits[..begin], &gains[..begin]);
                    let expected = metric.try_mean(&so_far.hits, &so_far.relevance, k).unwrap();
                    let (value, count) = current(epoch.running_value());
                    assert_eq!(count, begin);
                    assert!((value - expected).abs() < 1e-12, "{metric:?}@{k}, the first {begin}: {value}, not {expected}");
                }
                let all = input(&hits, &gains);
                let expected = metric.try_mean(&all.hits, &all.relevance, k).unwrap();
                let written = epoch.compute().unwrap().serialized;
                let NumericEntry::Final(value) = NumericEntry::deserialize(&written).unwrap() else { panic!("{written}") };
                assert!((value - expected).abs() < 1e-12, "{metric:?}@{k}: {value}, not {expected}");
                assert!((0.03..0.97).contains(&value), "{metric:?}@{k}: {value} says little");
                assert_eq!(epoch.final_value().current(), value);
                epoch.clear();
            }
        }
    }
}

#[test]
fn a_metric_is_named_by_its_k_and_more_is_better() {
    for (metric, name) in NAMES {
        let metric = RankingMetric::new(metric, 10);
        assert_eq!(*metric.name(), name);
        let MetricAttributes::Numeric(attributes) = metric.attributes() else { panic!("{name} is a number") };
        assert!(attributes.higher_is_better && attributes.unit.is_none());
    }
}

#[test]
#[should_panic(expected = "RankingMetric: a k of 0 looks at no hits; give 1 or more")]
fn a_metric_of_no_hits_is_refused_when_it_is_made() {
    RankingMetric::new(Metric::Recall, 0);
}

#[test]
fn a_metric_of_hits_that_were_not_searched_for_is_an_error_of_the_step() {
    let (hits, gains) = queries(2, &mut StdRng::seed_from_u64(0));
    let error = |metric: Metric, k, input: &RankingInput| {
        RankingMetric::new(metric, k).update(input, &metadata()).unwrap_err().to_string()
    };
    let text = error(Metric::Ndcg, 11, &input(&hits, &gains));
    assert!(
        text.contains(
            "metric: k is 11, but there are 10 hits for each query; give 1 to 10, or search for more, if the catalogue has more"
        ),
        "{text}"
    );
    let text = error(Metric::Recall, 1, &input(&hits, &gains[..1]));
    assert!(text.contains("relevant items: there are 1, but must be 2, one for each"), "{text}");
}

/// Items on a circle; a query is to find the one that it is nearest to.
#[derive(Module, Debug)]
struct Circle {
    items: Param<Tensor<2>>,
}

const ITEMS: usize = 12;

fn at(angle: f64) -> [f32; 2] {
    [angle.cos() as f32, angle.sin() as f32]
}

impl InferenceStep for Circle {
    type Input = (Tensor<2>, Vec<usize>);
    type Output = RankingOutput;

    fn step(&self, (queries, meant): Self::Input) -> RankingOutput {
        let hits = Catalogue::new(self.items.val(), Similarity::Cosine).top_k(queries.clone(), 3);
        RankingOutput { loss: queries.mean(), ranking: RankingInput { hits, relevance: Relevance::one(meant) } }
    }
}

struct Together;

impl Batcher<(f64, usize), (Tensor<2>, Vec<usize>)> for Together {
    fn batch(&self, queries: Vec<(f64, usize)>, device: &Device) -> (Tensor<2>, Vec<usize>) {
        let angles: Vec<f32> = queries.iter().flat_map(|&(angle, _)| at(angle)).collect();
        let angles = Tensor::from_data(TensorData::new(angles, [queries.len(), 2]), device);
        (angles, queries.into_iter().map(|(_, item)| item).collect())
    }
}

/// Burn's evaluation of 50 queries in batches of 8, of which every fifth means the item beside the nearest.
fn evaluate(name: &str, k: usize) -> (EvaluationResult, Option<String>) {
    let folder = env::temp_dir().join(format!("burn-retrieval-{name}-{}", process::id()));
    let angle = |item: usize| item as f64 * std::f64::consts::TAU / ITEMS as f64;
    let items: Vec<f32> = (0..ITEMS).flat_map(|item| at(angle(item))).collect();
    let items = Tensor::<2>::from_data(TensorData::new(items, [ITEMS, 2]), &device());
    let query = |i: usize| (angle(i % ITEMS) + 0.05, (i + usize::from(i.is_multiple_of(5))) % ITEMS);
    let queries = DataLoaderBuilder::new(Together)
        .batch_size(8)
        .set_device(device())
        .build(InMemDataset::new((0..50).map(query).collect::<Vec<_>>()));
    let evaluator = EvaluatorBuilder::new(&folder)
        .with_application_logger(None)
        .metrics((RankingMetric::new(Metric::Recall, k), RankingMetric::new(Metric::ReciprocalRank, k)))
        .build(Circle { items: Param::from_tensor(items) });
    let result = evaluator.eval("circle", queries);
    let log = fs::read_to_string(folder.join(format!("test/circle/Recall@{k}.log"))).ok();
    let _ = fs::remove_dir_all(&folder);
    (result, log)
}

#[test]
fn burn_evaluates_a_model_by_them() {
    for (k, expected) in [(1, 0.8), (2, 1.0)] {
        let (result, log) = evaluate("evaluated", k);
        assert!(result.error.is_none(), "{:?}", result.error);
        let log = log.expect("the log of the metric");
        let batches: Vec<(f64, usize)> = log.lines().map(|line| current(NumericEntry::deserialize(line).ok())).collect();
        assert_eq!(batches.iter().map(|batch| batch.1).collect::<Vec<_>>(), [8, 8, 8, 8, 8, 8, 2]);
        let mean = batches.iter().map(|&(value, count)| value * count as f64).sum::<f64>() / 50.0;
        assert!((mean - expected).abs() < 1e-12, "recall@{k}: {mean}, not {expected}");
    }
}

#[test]
fn burn_ends_an_evaluation_whose_metric_was_not_searched_for() {
    let (result, _) = evaluate("ended", 4);
    let error = result.error.map(|error: Arc<_>| format!("{error:?}")).expect("an error");
    assert!(error.contains("k is 4, but there are 3 hits for each query"), "{error}");
}
