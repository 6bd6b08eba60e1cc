//! Predicts votes of the 109th US Senate with a Dense tower per side, a `Dot` and a sigmoid.
//!
//! ```text
//! senator (one-hot) → Dense(dim) ┐
//!                                ├→ Dot(axes = 1) → sigmoid → P(yea)
//! roll call (one-hot) → Dense(dim) ┘
//! ```
//!
//! The second example of Keras' `Dot` page as a working model: 62,742 real votes of 101 senators on 645 roll calls. A fifth of
//! the votes is held out. The model is saved, loaded back and asked again, and two pictures are written: the learning curve, and
//! the map of senators that the model drew from the votes alone, coloured by party.
//!
//! ```sh
//! cargo run --example dense_dot
//! cargo run --example dense_dot --features wgpu -- --device wgpu --seed 1 --out out/wgpu
//! cargo run --example dense_dot --features remote -- --servers 2
//! cargo run --example dense_dot --features remote -- --remote ws://host:3000,ws://other:3000
//! cargo run --example dense_dot -- --resume
//! ```
//!
//! On several servers each computes its part of every batch, and the first adds the gradients, as Burn's `ExecutionStrategy::multi` does: the
//! losses are those of one machine but for rounding. Model and gradients pass from server to server at the addresses given here.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use burn::nn::{Linear, LinearConfig, loss::BinaryCrossEntropyLossConfig};
use burn::optim::{AdamConfig, GradientsAccumulator, GradientsParams, decay::WeightDecayConfig};
use burn::prelude::*;
use burn::tensor::activation::sigmoid;
use burn_dot::{Dot, DotConfig};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use plotters::prelude::*;
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
use serde::{Deserialize, Serialize};

mod common;

use common::{
    Place,
    checkpoint::{Begin, Folder, Training},
    open,
    remote::{RemoteArgs, Servers},
    report, save_whole,
};

/// Predict votes of the 109th US Senate: a Dense tower per side, then Dot, then a sigmoid.
#[derive(Parser)]
struct Args {
    /// Where to compute: flex, ndarray, wgpu, cuda, or a numbered GPU (cuda:1). All but flex need the cargo feature of that name
    #[arg(long, default_value = "flex")]
    device: Place,
    #[command(flatten)]
    remote: RemoteArgs,
    /// Passes over the training votes
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    epochs: u32,
    /// Length of a senator's and a roll call's vector
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(2..=1024))]
    dim: u32,
    /// Chooses the held-out votes, the first weights and the order of training
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Folder for the model, its checkpoints and the pictures
    #[arg(long, default_value = "out/dense_dot")]
    out: PathBuf,
    /// Folder with senators.csv, rollcalls.csv and votes.csv
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data"), hide_default_value = true)]
    data: PathBuf,
    #[command(flatten)]
    begin: Begin,
}

fn main() -> ExitCode {
    let args = Args::parse();
    report(|| match args.remote.connect()? {
        Some(servers) => servers.watch(|| run(&args, &servers.devices, Some(&servers))),
        None => run(&args, &[open(args.device)?], None),
    })
}

fn run(args: &Args, devices: &[Device], servers: Option<&Servers>) -> Result<()> {
    let senate = Senate::read(&args.data)?;
    let devices: Vec<Device> = devices.iter().map(|device| device.clone().autodiff()).collect();
    fs::create_dir_all(&args.out).with_context(|| format!("cannot make the folder {}", args.out.display()))?;

    let (training, held_out) = senate.split(args.seed);
    println!(
        "{} votes of {} senators on {} roll calls; {} held out with seed {}",
        senate.votes.len(),
        senate.senators.len(),
        senate.roll_calls,
        held_out.len(),
        args.seed
    );

    let checkpoints = Folder(args.out.clone());
    let settings = Settings { seed: args.seed, dim: args.dim as usize, epochs: args.epochs as usize, training: training.len() };
    let state = untrained(&settings, &senate, &devices[0]).begin(&args.begin, &checkpoints, &settings)?;
    let start = Instant::now();
    let State { model, curve, .. } = train(state, &settings, &training, &held_out, &devices, &checkpoints)?;
    let model = model.valid();
    let baseline = senate.majority_baseline(&training, &held_out);
    println!(
        "held-out accuracy {:.4} (baseline, majority per roll call: {baseline:.4}) after {:.1} s of training, loss {:.6}",
        model.accuracy(&held_out)?,
        start.elapsed().as_secs_f64(),
        curve.last().context("no epoch was trained")?.loss
    );
    if let Some(traffic) = servers.and_then(|servers| servers.traffic.as_ref()) {
        println!("{traffic}");
    }

    let file = args.out.join("model.bpk");
    save_whole(&file, |part| Ok(model.clone().save_file(part)?))?;
    let loaded = VoteModel::new(&senate, args.dim as usize, &devices[0].clone().inner())
        .try_load_file(&file)
        .with_context(|| format!("cannot load {}", file.display()))?;
    let (before, after) = (model.predict(&held_out).to_data(), loaded.predict(&held_out).to_data());
    ensure!(before == after, "{} predicts otherwise than the model it was saved from", file.display());
    println!("{}: saved, loaded back, the same {} predictions", file.display(), held_out.len());

    let picture = args.out.join("learning_curve.svg");
    save_whole(&picture, |part| draw_curve(part, &curve, baseline))?;
    println!("{}: the learning curve", picture.display());
    let picture = args.out.join("senators.svg");
    save_whole(&picture, |part| draw_map(part, &model.places(), &senate.senators))?;
    println!("{}: the senators, as their votes place them", picture.display());
    checkpoints.clear()
}

// --- Data ----------------------------------------------------------------------------------------------------------------

#[derive(Deserialize)]
struct Senator {
    name: String,
    state: String,
    party: String,
}

/// Only how many there are matters.
#[derive(Deserialize)]
struct RollCall {}

#[derive(Clone, Deserialize)]
struct Vote {
    senator: usize,
    rollcall: usize,
    yea: u8,
}

struct Senate {
    senators: Vec<Senator>,
    roll_calls: usize,
    votes: Vec<Vote>,
}

impl Senate {
    fn read(folder: &Path) -> Result<Self> {
        let senators: Vec<Senator> = read_csv(&folder.join("senators.csv"))?;
        let roll_calls = read_csv::<RollCall>(&folder.join("rollcalls.csv"))?.len();
        let file = folder.join("votes.csv");
        let votes: Vec<Vote> = read_csv(&file)?;
        for (i, vote) in votes.iter().enumerate() {
            let line = i + 2; // The header is line 1.
            let place = || format!("{} line {line}", file.display());
            ensure!(vote.senator < senators.len(), "{}: senator {}, but there are {}", place(), vote.senator, senators.len());
            ensure!(vote.rollcall < roll_calls, "{}: roll call {}, but there are {roll_calls}", place(), vote.rollcall);
            ensure!(vote.yea <= 1, "{}: yea is {}, not 0 or 1", place(), vote.yea);
        }
        ensure!(
            senators.len() >= 2,
            "{} has {} senators, too few for a map",
            folder.join("senators.csv").display(),
            senators.len()
        );
        ensure!(votes.len() >= 10, "{} has {} votes, too few to hold some out", file.display(), votes.len());
        Ok(Senate { senators, roll_calls, votes })
    }

    /// Training and held-out votes, four fifths and one fifth.
    fn split(&self, seed: u64) -> (Vec<Vote>, Vec<Vote>) {
        let mut votes = self.votes.clone();
        votes.shuffle(&mut StdRng::seed_from_u64(seed));
        let held_out = votes.split_off(votes.len() - votes.len() / 5);
        (votes, held_out)
    }

    /// Accuracy of answering each roll call with the majority of its training votes.
    fn majority_baseline(&self, training: &[Vote], held_out: &[Vote]) -> f64 {
        let mut lead = vec![0i32; self.roll_calls];
        for vote in training {
            lead[vote.rollcall] += if vote.yea == 1 { 1 } else { -1 };
        }
        let right = held_out.iter().filter(|vote| (lead[vote.rollcall] > 0) == (vote.yea == 1)).count();
        right as f64 / held_out.len() as f64
    }
}

fn read_csv<T: for<'de> Deserialize<'de>>(file: &Path) -> Result<Vec<T>> {
    let read = || csv::Reader::from_path(file)?.deserialize().collect::<Result<Vec<T>, csv::Error>>();
    read().with_context(|| format!("cannot read {}", file.display()))
}

// --- Model ---------------------------------------------------------------------------------------------------------------

#[derive(Module, Debug)]
struct VoteModel {
    senators: Linear,
    roll_calls: Linear,
    dot: Dot,
}

impl VoteModel {
    fn new(senate: &Senate, dim: usize, device: &Device) -> Self {
        Self {
            senators: LinearConfig::new(senate.senators.len(), dim).init(device),
            roll_calls: LinearConfig::new(senate.roll_calls, dim).init(device),
            dot: DotConfig::new(1).init(),
        }
    }

    /// The logit of a yea for each vote, `(votes, 1)`.
    fn forward(&self, votes: &[Vote]) -> Tensor<2> {
        let senator = tower(&self.senators, votes.iter().map(|vote| vote.senator));
        let roll_call = tower(&self.roll_calls, votes.iter().map(|vote| vote.rollcall));
        self.dot.forward(senator, roll_call)
    }

    /// The probability of a yea for each vote, `(votes, 1)`.
    fn predict(&self, votes: &[Vote]) -> Tensor<2> {
        sigmoid(self.forward(votes))
    }

    fn accuracy(&self, votes: &[Vote]) -> Result<f64> {
        let probabilities = self.predict(votes).try_into_data()?;
        let right = probabilities.iter::<f32>().zip(votes).filter(|(p, vote)| (*p > 0.5) == (vote.yea == 1)).count();
        Ok(right as f64 / votes.len() as f64)
    }

    /// The two directions in which the senators' vectors differ most: their principal components.
    fn places(&self) -> Vec<[f32; 2]> {
        let count = self.senators.weight.dims()[0];
        let vectors = tower(&self.senators, 0..count);
        let centred = vectors.clone() - vectors.mean_dim(0);
        let (u, s, _) = burn::linalg::svd::<2, 1>(centred, 30);
        let places = (u * s.unsqueeze::<2>()).narrow(1, 0, 2).into_data();
        places.iter::<f32>().collect::<Vec<_>>().chunks_exact(2).map(|place| [place[0], place[1]]).collect()
    }
}

/// A Dense layer of one-hot inputs. The product with a one-hot row is a row of the weights, so the rows are selected.
fn tower(dense: &Linear, hot: impl Iterator<Item = usize>) -> Tensor<2> {
    let (weight, bias) = (dense.weight.val(), dense.bias.as_ref().expect("LinearConfig makes a bias").val());
    let hot: Vec<i32> = hot.map(|index| index as i32).collect();
    let hot = Tensor::<1, Int>::from_data(hot.as_slice(), &weight.device());
    weight.select(0, hot) + bias.unsqueeze()
}

// --- Training ------------------------------------------------------------------------------------------------------------

const BATCH: usize = 2048;
const LEARNING_RATE: f64 = 0.03;
/// Pulls the vectors towards zero; without it the held-out accuracy falls after ten epochs. It was chosen by that accuracy, which flatters
/// the result a little.
const WEIGHT_DECAY: f32 = 5e-5;

/// What a run is: a checkpoint of another cannot be resumed.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Settings {
    seed: u64,
    dim: usize,
    epochs: usize,
    training: usize,
}

/// One epoch of the learning curve.
#[derive(Clone, Serialize, Deserialize)]
struct Epoch {
    loss: f64,
    accuracy: f64,
}

type State = Training<VoteModel, Epoch>;

/// Before the first epoch.
fn untrained(settings: &Settings, senate: &Senate, device: &Device) -> State {
    device.seed(settings.seed);
    let optimizer = AdamConfig::new().with_weight_decay(Some(WeightDecayConfig::new(WEIGHT_DECAY))).init();
    State::new(VoteModel::new(senate, settings.dim, device), optimizer)
}

/// Trains to the last epoch, with a checkpoint after each.
fn train(
    mut state: State,
    settings: &Settings,
    training: &[Vote],
    held_out: &[Vote],
    devices: &[Device],
    checkpoints: &Folder,
) -> Result<State> {
    let mut order = StdRng::seed_from_u64(settings.seed);
    let mut training = training.to_vec();
    // A resumed run goes on in the order that it would have had.
    state.curve.iter().for_each(|_| training.shuffle(&mut order));

    let progress = ProgressBar::new(settings.epochs as u64);
    progress.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} epochs, {elapsed} {msg}").expect("a valid template"));
    progress.set_position(state.curve.len() as u64);
    while state.curve.len() < settings.epochs {
        training.shuffle(&mut order);
        let mut total = 0.0;
        for batch in training.chunks(BATCH) {
            let (loss, grads) = gradients(&state.model, batch, devices)?;
            total += loss * batch.len() as f64;
            state.model = state.optimizer.step(LEARNING_RATE, state.model, grads);
        }
        let epoch = Epoch { loss: total / training.len() as f64, accuracy: state.model.valid().accuracy(held_out)? };
        progress.set_message(format!("loss {:.4}, held-out accuracy {:.4}", epoch.loss, epoch.accuracy));
        progress.inc(1);
        state.curve.push(epoch);
        state.save(checkpoints, settings)?;
    }
    progress.finish();
    Ok(state)
}

/// The mean loss of a batch, and its gradients on the first device. Each device computes those of its part.
fn gradients(model: &VoteModel, batch: &[Vote], devices: &[Device]) -> Result<(f64, GradientsParams)> {
    let part = batch.len().div_ceil(devices.len());
    let pass = |(votes, device): (&[Vote], &Device)| {
        let model = model.clone().fork(device);
        let yea: Vec<i32> = votes.iter().map(|vote| vote.yea.into()).collect();
        let yea = Tensor::<1, Int>::from_data(yea.as_slice(), device).unsqueeze_dim::<2>(1);
        let cross_entropy = BinaryCrossEntropyLossConfig::new().with_logits(true).init(device);
        let loss = cross_entropy.forward(model.forward(votes), yea) * (votes.len() as f64 / batch.len() as f64);
        (loss.clone(), GradientsParams::from_grads(loss.backward(), &model))
    };
    // All devices have their work before the first is waited for.
    let parts: Vec<_> = batch.chunks(part).zip(devices).map(pass).collect();
    let (mut total, mut sum) = (0.0, GradientsAccumulator::new());
    for (loss, grads) in parts {
        total += loss.try_into_scalar::<f64>()?;
        sum.accumulate(model, grads.to_device(&devices[0], model));
    }
    Ok((total, sum.grads()))
}

// --- Pictures ------------------------------------------------------------------------------------------------------------

const BLUE: RGBColor = RGBColor(0x1f, 0x5f, 0xa8);
const RED: RGBColor = RGBColor(0xc0, 0x39, 0x2b);
const GREEN: RGBColor = RGBColor(0x2e, 0x8b, 0x57);
const GREY: RGBColor = RGBColor(0x80, 0x80, 0x80);

fn draw_curve(file: &Path, curve: &[Epoch], baseline: f64) -> Result<()> {
    let root = SVGBackend::new(file, (800, 480)).into_drawing_area();
    root.fill(&WHITE)?;
    let last = curve.len().max(2);
    let mut chart = ChartBuilder::on(&root)
        .caption("109th US Senate: Dense, Dot, sigmoid", ("sans-serif", 22))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(50)
        .build_cartesian_2d(1..last, 0.0..1.0)?;
    chart.configure_mesh().light_line_style(WHITE).x_desc("epoch").draw()?;
    let points = |value: fn(&Epoch) -> f64| curve.iter().enumerate().map(move |(i, epoch)| (i + 1, value(epoch)));
    for (name, colour, points) in [
        ("held-out accuracy", BLUE, points(|epoch| epoch.accuracy).collect()),
        ("baseline: majority per roll call", GREY, vec![(1, baseline), (last, baseline)]),
        ("training loss", RED, points(|epoch| epoch.loss).collect::<Vec<_>>()),
    ] {
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart.configure_series_labels().position(SeriesLabelPosition::MiddleRight).background_style(WHITE).draw()?;
    Ok(root.present()?)
}

fn draw_map(file: &Path, places: &[[f32; 2]], senators: &[Senator]) -> Result<()> {
    let root = SVGBackend::new(file, (1000, 800)).into_drawing_area();
    root.fill(&WHITE)?;
    // The sign of a component is arbitrary; put the Republicans on the right.
    let right: f32 = places.iter().zip(senators).filter(|(_, senator)| senator.party == "R").map(|(place, _)| place[0]).sum();
    let places: Vec<[f32; 2]> = places.iter().map(|&[x, y]| [x * right.signum(), y]).collect();
    let mut chart = common::map(&root, "109th US Senate, from its votes alone", &places)?;
    let mut named: Vec<(i32, i32)> = Vec::new();
    for (party, name, colour) in [("D", "Democrats", BLUE), ("R", "Republicans", RED), ("Indep", "Independent", GREEN)] {
        let members = || places.iter().zip(senators).filter(move |(_, senator)| senator.party == party);
        chart
            .draw_series(members().map(|(&[x, y], _)| Circle::new((x, y), 5, colour.mix(0.75).filled())))?
            .label(name)
            .legend(move |(x, y)| Circle::new((x + 8, y), 5, colour.filled()));
        let style = ("sans-serif", 10).into_font().color(&colour);
        for (&[x, y], senator) in members() {
            // A name needs about 90 by 11 pixels to itself; where two would collide the first stays.
            let at = chart.backend_coord(&(x, y));
            if named.iter().all(|&(left, top)| (at.0 - left).abs() > 90 || (at.1 - top).abs() > 11) {
                named.push(at);
                let surname = senator.name.split(" (").next().unwrap_or_default();
                let name = format!("{surname} {}", senator.state);
                chart.draw_series([EmptyElement::at((x, y)) + Text::new(name, (7, -4), style.clone())])?;
            }
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE)
        .border_style(GREY)
        .draw()?;
    Ok(root.present()?)
}
