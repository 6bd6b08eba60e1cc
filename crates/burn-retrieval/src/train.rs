//! The ranking metrics for `burn-train`: [`RankingMetric`].

use std::sync::Arc;

use burn_core::backend::ExecutionError;
use burn_core::tensor::{Tensor, TensorReadError};
use burn_train::metric::state::{FormatOptions, NumericMetricState};
use burn_train::metric::{
    Adaptor, ItemLazy, LossInput, Metric as TrainMetric, MetricAttributes, MetricMetadata, MetricName, Numeric,
    NumericAttributes, NumericEntry, SerializedEntry,
};

use crate::{
    hits::Hits,
    metrics::{Metric, Relevance},
};

/// The best items of a batch of queries, and which items are relevant: what [`RankingMetric`] looks at.
///
/// A step whose output this is needs no [`Adaptor`] of its own.
#[derive(Clone, Debug)]
pub struct RankingInput {
    /// The best items of each query.
    pub hits: Hits,
    /// The relevant items of each query.
    pub relevance: Relevance,
}

/// The output of a validation step: a loss, for [`LossMetric`](burn_train::metric::LossMetric), and the ranking.
#[derive(Clone, Debug)]
pub struct RankingOutput {
    /// The loss of the batch.
    pub loss: Tensor<1>,
    /// What was found, and what is relevant.
    pub ranking: RankingInput,
}

impl Adaptor<RankingInput> for RankingInput {
    fn adapt(&self) -> RankingInput {
        self.clone()
    }
}

impl Adaptor<RankingInput> for RankingOutput {
    fn adapt(&self) -> RankingInput {
        self.ranking.clone()
    }
}

impl Adaptor<LossInput> for RankingOutput {
    fn adapt(&self) -> LossInput {
        LossInput::new(self.loss.clone())
    }
}

impl ItemLazy for RankingInput {
    fn sync(self) -> Result<Self, ExecutionError> {
        // Nothing is read here: that is for the thread of the metrics. Hits have no gradient.
        self.hits.indices.device().flush()?;
        Ok(self)
    }
}

impl ItemLazy for RankingOutput {
    fn sync(self) -> Result<Self, ExecutionError> {
        self.loss.device().flush()?;
        Ok(RankingOutput { loss: self.loss.without_autodiff(), ranking: self.ranking.sync()? })
    }
}

/// A ranking metric over an epoch, as `burn-train` takes it.
///
/// ```text
/// epoch = Σ over batches of (queries in the batch) · (mean of the batch) / Σ over batches of (queries in the batch)
/// ```
///
/// # Numerics
///
/// The mean over the queries of all batches, whatever their sizes: what [`Metric::try_mean`] gives for all at once. A batch without queries
/// counts nothing, and an epoch without any is NaN. Values are from 0 to 1, as those of the functions, not in percent. The name is that of
/// the metric and k: `Recall@10`, `Precision@10`, `HitRate@10`, `MRR@10`, `MAP@10`, `nDCG@10`.
///
/// # Errors
///
/// [`update`](TrainMetric::update) returns the text of the [`RetrievalError`](crate::RetrievalError), where [`Metric::try_mean`] returns
/// one, as an error of execution: Burn ends the run with it.
///
/// ```
/// use std::sync::Arc;
///
/// use burn::{data::dataloader::DataLoader, prelude::*, train::{EvaluatorBuilder, InferenceStep}};
/// use burn_retrieval::{Catalogue, Similarity};
/// use burn_retrieval::metrics::{Metric, RankingInput, RankingMetric, Relevance};
///
/// #[derive(Module, Debug)]
/// struct Towers { query: nn::Linear, item: nn::Linear }
///
/// impl InferenceStep for Towers {
///     /// Queries, all items, and which item each query means.
///     type Input = (Tensor<2>, Tensor<2>, Vec<usize>);
///     type Output = RankingInput;
///
///     fn step(&self, (queries, items, meant): Self::Input) -> RankingInput {
///         let catalogue = Catalogue::new(self.item.forward(items), Similarity::Cosine);
///         RankingInput { hits: catalogue.top_k(self.query.forward(queries), 10), relevance: Relevance::one(meant) }
///     }
/// }
///
/// fn evaluate(towers: Towers, queries: Arc<dyn DataLoader<(Tensor<2>, Tensor<2>, Vec<usize>)>>) {
///     let metrics = (RankingMetric::new(Metric::Recall, 10), RankingMetric::new(Metric::ReciprocalRank, 10));
///     EvaluatorBuilder::new("out/evaluation").metrics(metrics).build(towers).eval("held out", queries);
/// }
/// ```
#[derive(Clone)]
pub struct RankingMetric {
    metric: Metric,
    k: usize,
    name: MetricName,
    state: NumericMetricState,
}

impl RankingMetric {
    /// A metric of the first `k` hits.
    ///
    /// # Panics
    ///
    /// If `k` is 0.
    #[track_caller]
    pub fn new(metric: Metric, k: usize) -> Self {
        assert!(k > 0, "RankingMetric: a k of 0 looks at no hits; give 1 or more");
        let name = match metric {
            Metric::Recall => "Recall",
            Metric::Precision => "Precision",
            Metric::HitRate => "HitRate",
            Metric::ReciprocalRank => "MRR",
            Metric::AveragePrecision => "MAP",
            Metric::Ndcg => "nDCG",
        };
        RankingMetric { metric, k, name: Arc::new(format!("{name}@{k}")), state: NumericMetricState::new() }
    }

    fn format(&self) -> FormatOptions {
        FormatOptions::new(self.name()).precision(4)
    }
}

impl TrainMetric for RankingMetric {
    type Input = RankingInput;

    fn name(&self) -> MetricName {
        self.name.clone()
    }

    fn attributes(&self) -> MetricAttributes {
        NumericAttributes { unit: None, higher_is_better: true }.into()
    }

    fn update(&mut self, input: &RankingInput, _: &MetricMetadata) -> Result<SerializedEntry, TensorReadError> {
        let mean = self.metric.try_mean(&input.hits, &input.relevance, self.k);
        let mean = mean.map_err(|error| ExecutionError::WithContext { reason: error.to_string() })?;
        self.state.update(mean, input.relevance.len());
        Ok(self.state.compute_update(self.format()))
    }

    fn compute(&mut self) -> Result<SerializedEntry, TensorReadError> {
        Ok(self.state.compute_final(self.format()))
    }

    fn clear(&mut self) {
        self.state.reset();
    }
}

impl Numeric for RankingMetric {
    fn value(&self) -> Option<NumericEntry> {
        Some(self.state.current_value())
    }

    fn running_value(&self) -> Option<NumericEntry> {
        Some(self.state.running_value())
    }

    fn final_value(&self) -> NumericEntry {
        self.state.final_value()
    }
}
