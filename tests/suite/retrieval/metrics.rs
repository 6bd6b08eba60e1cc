//! Ranking metrics against the answers of ranx, pytrec_eval and scikit-learn: `tests/fixtures/retrieval.py`.

use std::collections::BTreeMap;

use burn::prelude::*;
use burn_retrieval::Hits;
use burn_retrieval::metrics::{self, Metric, Relevance};
use serde::Deserialize;

use crate::device::device;

#[derive(Deserialize)]
struct Fixture {
    hits: Vec<Vec<i64>>,
    gains: Vec<Vec<(usize, f64)>>,
    /// By k, metric and library, for each query.
    answers: BTreeMap<usize, BTreeMap<String, BTreeMap<String, Vec<f64>>>>,
}

fn hits(rows: &[Vec<i64>]) -> Hits {
    let shape = [rows.len(), rows.first().map_or(0, Vec::len)];
    let indices = Tensor::<2, Int>::from_data(TensorData::new(rows.concat(), shape), &device());
    Hits { scores: Tensor::zeros(shape, &device()), indices }
}

const METRICS: [(&str, Metric); 6] = [
    ("recall", Metric::Recall),
    ("precision", Metric::Precision),
    ("hit_rate", Metric::HitRate),
    ("mrr", Metric::ReciprocalRank),
    ("map", Metric::AveragePrecision),
    ("ndcg", Metric::Ndcg),
];

#[test]
fn every_metric_agrees_with_what_other_libraries_answered() {
    let fixture: Fixture = serde_json::from_str(include_str!("../../fixtures/retrieval.json")).expect("the fixture");
    let (hits, relevance) = (hits(&fixture.hits), Relevance::graded(&fixture.gains));
    let mut compared = 0;
    for (&k, answers) in &fixture.answers {
        for (name, metric) in METRICS {
            let given = metric.try_per_query(&hits, &relevance, k).unwrap();
            for (library, expected) in &answers[name] {
                for (query, (given, expected)) in given.iter().zip(expected).enumerate() {
                    assert!(
                        (given - expected).abs() < 1e-7,
                        "{name}@{k}, query {query}: {given}, but {library} says {expected}"
                    );
                }
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 4 * (2 * 6 + 1), "four k; two libraries for each metric, three for nDCG");
}

#[test]
fn the_plain_functions_are_the_means_of_their_metrics() {
    let (hits, relevance) = (hits(&[vec![4, 2, 0], vec![1, -1, -1]]), Relevance::sets(&[vec![2, 0, 9, 9], vec![]]));
    let given = [metrics::recall, metrics::precision, metrics::hit_rate, metrics::mrr, metrics::map, metrics::ndcg]
        .map(|metric| metric(&hits, &relevance, 3));
    let dcg = |ranks: &[f64]| ranks.iter().map(|rank| 1.0 / (rank + 1.0).log2()).sum::<f64>();
    let first = [2.0 / 3.0, 2.0 / 3.0, 1.0, 0.5, (0.5 + 2.0 / 3.0) / 3.0, dcg(&[2.0, 3.0]) / dcg(&[1.0, 2.0, 3.0])];
    for ((name, _), (given, first)) in METRICS.into_iter().zip(given.into_iter().zip(first)) {
        assert!((given - first / 2.0).abs() < 1e-12, "{name}: a query without relevant items counts as 0; {given}");
    }
}

#[test]
fn a_metric_of_hits_that_were_not_searched_for_is_an_error() {
    let (hits, relevance) = (hits(&[vec![4, 2, 0]]), Relevance::one([4]));
    for k in [0, 4] {
        let error = Metric::Recall.try_mean(&hits, &relevance, k).unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "metric: k is {k}, but there are 3 hits for each query; give 1 to 3, or search for more, if the catalogue has more"
            )
        );
    }
    let error = Metric::Ndcg.try_mean(&hits, &Relevance::one([1, 2]), 1).unwrap_err().to_string();
    assert_eq!(error, "relevant items: there are 2, but must be 1, one for each");
}
