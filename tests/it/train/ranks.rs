//! Several ranks take the steps of one: the rules of the exchange in the host's memory, which is
//! what the collective of the GPUs is held to.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use burn::backend::{Autodiff, NdArray};
use burn::tensor::ops::FloatTensor;
use burn_hybrid_ops::HybridEngine;
use burn_nvfp4::Nvfp4;
use burn_nvfp4::recipe::{Policy, presets};
use burn_nvfp4_models::checkpoint::run::NamedTensors;
use burn_nvfp4_models::train::exchange::{Exchange, RankLost, Word, host};
use burn_nvfp4_models::train::guard::{SpikeAction, SpikeGuard};
use burn_nvfp4_models::train::log;
use burn_nvfp4_models::train::numerics::{Quantized, Unquantized};
use burn_nvfp4_models::train::params::read_parameters;

use super::*;
use crate::device::exclusive;

type B = Autodiff<NdArray>;
type Q = Nvfp4<Autodiff<NdArray>>;

/// Ranks on the one CPU device, each with its numerics.
fn ranks<B: TrainingEngine>(numerics: Vec<Box<dyn Numerics>>) -> Vec<Rank<B>> {
    let devices = vec![B::Device::default(); numerics.len()];
    let ends = host::between(devices.clone()).into_iter();
    let parts = ends.zip(devices).zip(numerics);
    parts
        .map(|((end, device), numerics)| Rank {
            device,
            numerics,
            exchange: Box::new(end),
        })
        .collect()
}

fn unquantized(count: usize) -> Vec<Box<dyn Numerics>> {
    (0..count).map(|_| Box::new(Unquantized) as _).collect()
}

/// NVIDIA's recipe on every layer that the paper quantizes, with stochastic rounding.
fn quantized(count: usize) -> Vec<Box<dyn Numerics>> {
    let one = |_| {
        let policy = Policy::paper(presets::NVIDIA).with_blocks(tiny().n_blocks());
        let numerics = Quantized::<Q>::new(Default::default(), policy.unwrap(), 7);
        Box::new(numerics.unwrap()) as _
    };
    (0..count).map(one).collect()
}

/// Losses and norms by step, as they stand in the log.
fn steps(directory: &RunDirectory) -> Vec<(u64, f64, f64)> {
    let lines = log::current(log::read(&directory.log()).unwrap()).into_iter();
    let step = |line| {
        if let LogLine::Step {
            step,
            loss,
            grad_norm,
            ..
        } = line
        {
            return Some((step, loss, grad_norm));
        }
        None
    };
    lines.filter_map(step).collect()
}

fn assert_same_bits(a: &NamedTensors, b: &NamedTensors) {
    assert!(a.keys().eq(b.keys()) && !a.is_empty());
    for (name, data) in a {
        assert!(data.as_bytes() == b[name].as_bytes(), "{name} differs");
    }
}

/// Every rank has the parameters of the first.
fn assert_ranks_agree<B: HybridEngine>(models: &[HybridLm<B>]) -> NamedTensors {
    let first = read_parameters(&models[0]);
    for model in &models[1..] {
        assert_same_bits(&first, &read_parameters(model));
    }
    first
}

/// One rank with two micro-batches a step against two with one each: sums of two are the same in
/// any order, so every parameter is.
fn check_two_equal_one<B: TrainingEngine>(numerics: fn(usize) -> Vec<Box<dyn Numerics>>) {
    let _device = exclusive();
    let place = Place::new();
    let (one, two) = (
        place.run("one", shape(2, 32, 2)),
        place.run("two", shape(2, 32, 2)),
    );
    let go_on = Interrupter::new();
    let (_, alone) = one.go_on::<B>(ranks(numerics(1)), None, &go_on).unwrap();
    let (outcome, both) = two.go_on::<B>(ranks(numerics(2)), None, &go_on).unwrap();
    assert_eq!((alone.len(), both.len(), outcome.step), (1, 2, 8));
    assert_same_bits(&read_parameters(&alone[0]), &assert_ranks_agree(&both));
    let (one, two) = (steps(&one.directory), steps(&two.directory));
    assert_eq!((one.len(), two.len()), (8, 8));
    for (one, two) in one.iter().zip(&two) {
        assert_eq!((one.0, one.2), (two.0, two.2), "step and norm");
        // Two losses are added in f32 by one rank, in f64 by two.
        let close = (one.1 - two.1).abs() <= one.1 * 2f64.powi(-24);
        assert!(close, "{one:?} {two:?}");
    }
}

#[test]
fn two_ranks_train_the_bits_of_one() {
    check_two_equal_one::<B>(unquantized);
}

/// Stochastic rounding too: its bits belong to the micro-batch, whichever rank has it.
#[test]
fn two_ranks_train_the_bits_of_one_in_nvfp4() {
    check_two_equal_one::<Q>(quantized);
}

#[test]
fn two_ranks_with_half_a_batch_each_have_the_losses_of_one_with_the_whole() {
    let _device = exclusive();
    let place = Place::new();
    let go_on = Interrupter::new();
    let (whole, halves) = (
        place.run("whole", shape(4, 32, 1)),
        place.run("halves", shape(4, 32, 1)),
    );
    whole
        .go_on::<B>(ranks(unquantized(1)), None, &go_on)
        .unwrap();
    let (_, models) = halves
        .go_on::<B>(ranks(unquantized(2)), None, &go_on)
        .unwrap();
    assert_ranks_agree(&models);
    let (whole, halves) = (steps(&whole.directory), steps(&halves.directory));
    assert_eq!((whole.len(), halves.len()), (8, 8));
    for (one, two) in whole.iter().zip(&halves) {
        // Means over 128 tokens in another order: about sqrt(128) roundings of 2^-24 each, 7e-7.
        // Later steps have as much, though AdamW moves an element whose gradient is nothing but
        // rounding by a whole learning rate, whichever way: such are too few to be seen.
        assert!((one.1 - two.1).abs() < 1e-6 * one.1, "{one:?} {two:?}");
        assert!((one.2 - two.2).abs() < 1e-6 * one.2, "{one:?} {two:?}");
    }
}

#[test]
fn a_run_goes_on_with_another_number_of_ranks() {
    let _device = exclusive();
    let place = Place::new();
    let go_on = Interrupter::new();
    let run = |name: &str| place.run(name, shape(2, 32, 2));
    let whole = run("whole");
    let (_, alone) = whole
        .go_on::<B>(ranks(unquantized(1)), None, &go_on)
        .unwrap();
    let (expected, alone) = (steps(&whole.directory), read_parameters(&alone[0]));
    for (before, after) in [(1, 2), (2, 1)] {
        let run = run(&format!("{before} to {after}"));
        run.go_on::<B>(ranks(unquantized(before)), None, &go_on)
            .unwrap();
        std::fs::remove_dir_all(run.directory.checkpoint(8)).unwrap();
        let checkpoint = run.directory.load(None).unwrap();
        assert_eq!(
            (checkpoint.step(), checkpoint.state.position.data_step),
            (4, 4)
        );
        let resumed = run.go_on::<B>(ranks(unquantized(after)), Some(checkpoint), &go_on);
        let (outcome, models) = resumed.unwrap();
        assert_eq!((outcome.step, models.len()), (8, after));
        assert_same_bits(&alone, &assert_ranks_agree(&models));
        let found = steps(&run.directory);
        assert!(
            found
                .iter()
                .map(|it| it.0)
                .eq(expected.iter().map(|it| it.0))
        );
        let lines = log::read(&run.directory.log()).unwrap();
        let with =
            |line: &LogLine| matches!(line, LogLine::Resume { ranks, .. } if *ranks == after);
        assert!(lines.iter().any(with));
    }
}

/// Says of some steps (counted from 1) that an operand was no number.
#[derive(Debug)]
struct BrokenAt(&'static [u64], AtomicUsize);

impl Numerics for BrokenAt {
    fn begin_step(&self, step: u64, _total: u64) {
        let step = usize::try_from(step).unwrap();
        self.1.store(step + 1, Ordering::SeqCst);
    }

    fn take_non_finite(&self) -> Option<String> {
        let now = self.1.swap(0, Ordering::SeqCst) as u64;
        let found = self.0.contains(&now);
        found.then(|| "dgrad.lhs of layers.1.mixer.up_proj".to_owned())
    }

    fn in_high_precision(&self, forward: &mut dyn FnMut()) {
        forward();
    }
}

#[test]
fn a_rank_whose_step_is_not_finite_makes_all_skip_it_and_is_named() {
    let _device = exclusive();
    let place = Place::new();
    let mut run = place.run("run", shape(2, 32, 2));
    run.guard.non_finite_in_a_row = 3;
    let numerics = || -> Vec<Box<dyn Numerics>> {
        let broken = BrokenAt(&[3, 6, 7], AtomicUsize::new(0));
        vec![Box::new(Unquantized), Box::new(broken)]
    };
    let go_on = Interrupter::new();
    let (outcome, models) = run.go_on::<B>(ranks(numerics()), None, &go_on).unwrap();
    assert_eq!((outcome.step, outcome.skipped), (8, 3));
    assert_ranks_agree(&models);
    let lines = log::read(&run.directory.log()).unwrap();
    let skipped: Vec<_> = lines
        .iter()
        .filter_map(|line| {
            if let LogLine::Skipped(line) = line {
                return Some((line.step, line.place.clone().unwrap()));
            }
            None
        })
        .collect();
    let place = "dgrad.lhs of layers.1.mixer.up_proj on rank 1".to_owned();
    assert_eq!(skipped, [3, 6, 7].map(|step| (step, place.clone())));
    assert!(
        steps(&run.directory)
            .iter()
            .map(|it| it.0)
            .eq([1, 2, 4, 5, 8])
    );
}

#[test]
fn too_many_such_steps_stop_all_ranks_with_one_error_and_one_checkpoint() {
    let _device = exclusive();
    let place = Place::new();
    let mut run = place.run("run", shape(2, 32, 2));
    (run.guard.non_finite_in_a_row, run.save_every) = (2, 100);
    let broken = BrokenAt(&[5, 6], AtomicUsize::new(0));
    let numerics: Vec<Box<dyn Numerics>> = vec![Box::new(Unquantized), Box::new(broken)];
    let error = run.go_on::<B>(ranks(numerics), None, &Interrupter::new());
    let error = error.err().unwrap().to_string();
    assert!(
        error.starts_with("step 6: training stopped after 2 steps"),
        "{error}"
    );
    assert_eq!(run.directory.steps().unwrap(), [4]);
}

#[test]
fn ranks_go_back_together() {
    let _device = exclusive();
    let mut place = Place::new();
    place.tokens = super::guard::tokens_with_surprises(place.folder.path());
    let mut run = place.run("run", shape(1, 16, 2));
    (run.total, run.save_every) = (24, 2);
    // Half of a step is seldom surprise alone: one deviation calls a loss an outlier.
    let action = SpikeAction::Rewind {
        in_a_row: 1,
        at_most: 1000,
    };
    run.guard.spike = Some(SpikeGuard {
        window: 4,
        sigmas: 1.0,
        action,
    });
    let (_, models) = run
        .go_on::<B>(ranks(unquantized(2)), None, &Interrupter::new())
        .unwrap();
    assert_ranks_agree(&models);
    let lines = log::read(&run.directory.log()).unwrap();
    let rewinds = |line: &&LogLine| matches!(line, LogLine::Rewind(_));
    assert!(
        lines.iter().filter(rewinds).count() > 0,
        "it never went back"
    );
    let position = run.directory.load(None).unwrap().state.position;
    assert!(position.data_step > position.step, "{position:?}");
    assert!(steps(&run.directory).iter().map(|it| it.0).eq(1..=24));
}

/// Notes which micro-batches its rank has run, and asks the run to stop in a step.
#[derive(Debug)]
struct Watch {
    seen: Arc<Mutex<Vec<u32>>>,
    stop: Stop,
}

struct Stop(Interrupter, u64);

impl std::fmt::Debug for Stop {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Stop({})", self.1)
    }
}

impl Numerics for Watch {
    fn begin_step(&self, step: u64, _total: u64) {
        if step == self.stop.1 {
            self.stop.0.stop(Some("test"));
        }
    }

    fn take_non_finite(&self) -> Option<String> {
        None
    }

    fn in_micro_batch(&self, index: u32, pass: &mut dyn FnMut()) {
        self.seen.lock().unwrap().push(index);
        pass();
    }

    fn in_high_precision(&self, forward: &mut dyn FnMut()) {
        forward();
    }
}

/// Counts the sums of an exchange.
struct Counting<E>(E, Arc<AtomicUsize>);

impl<B: TrainingEngine, E: Exchange<B>> Exchange<B> for Counting<E> {
    fn rank(&self) -> usize {
        self.0.rank()
    }

    fn ranks(&self) -> usize {
        self.0.ranks()
    }

    fn gather(&self, word: Word) -> Result<Vec<Word>, RankLost> {
        self.0.gather(word)
    }

    fn sum(
        &self,
        tensors: Vec<FloatTensor<B::InnerBackend>>,
    ) -> Result<Vec<FloatTensor<B::InnerBackend>>, RankLost> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.sum(tensors)
    }
}

#[test]
fn gradients_are_summed_once_per_step_and_the_first_rank_alone_stops_and_saves() {
    let _device = exclusive();
    let place = Place::new();
    let run = place.run("run", shape(1, 32, 6));
    let (stop, sums) = (Interrupter::new(), Arc::new(AtomicUsize::new(0)));
    let seen: Vec<Arc<Mutex<Vec<u32>>>> = vec![Arc::default(), Arc::default()];
    let device = <NdArray as burn::tensor::backend::BackendTypes>::Device::default();
    let ends = host::between(vec![device; 2]).into_iter().zip(&seen);
    let ranks = ends.map(|(end, seen)| Rank::<B> {
        device,
        numerics: Box::new(Watch {
            seen: seen.clone(),
            stop: Stop(stop.clone(), 2),
        }),
        exchange: Box::new(Counting(end, sums.clone())),
    });
    let (outcome, models) = run.go_on(ranks.collect(), None, &stop).unwrap();
    assert_eq!((outcome.step, run.directory.steps().unwrap()), (3, vec![3]));
    assert_ranks_agree(&models);
    assert_eq!(sums.load(Ordering::SeqCst), 2 * 3, "once per rank and step");
    assert_eq!(*seen[0].lock().unwrap(), [0, 1, 2].repeat(3));
    assert_eq!(*seen[1].lock().unwrap(), [3, 4, 5].repeat(3));
    let lines = log::read(&run.directory.log()).unwrap();
    let count = |event: fn(&LogLine) -> bool| lines.iter().filter(|line| event(line)).count();
    assert_eq!(count(|line| matches!(line, LogLine::Step { .. })), 3);
    assert_eq!(count(|line| matches!(line, LogLine::Stopped { .. })), 1);
    assert_eq!(count(|line| matches!(line, LogLine::Checkpoint { .. })), 1);
}

/// Its rank's thread panics in a step.
#[derive(Debug)]
struct Panics(u64);

impl Numerics for Panics {
    fn begin_step(&self, step: u64, _total: u64) {
        if step == self.0 {
            resume_unwind(Box::new("out of memory"));
        }
    }

    fn take_non_finite(&self) -> Option<String> {
        None
    }

    fn in_high_precision(&self, forward: &mut dyn FnMut()) {
        forward();
    }
}

/// Without a word of the one that is gone, the others would wait for ever.
#[test]
fn a_rank_that_panics_ends_the_run_for_all() {
    let _device = exclusive();
    let place = Place::new();
    for broken in [0, 1] {
        let run = place.run(&format!("{broken}"), shape(2, 32, 2));
        let mut numerics = unquantized(2);
        numerics[broken] = Box::new(Panics(3));
        let ranks = ranks::<B>(numerics);
        let panic = catch_unwind(AssertUnwindSafe(|| {
            run.go_on(ranks, None, &Interrupter::new())
        }));
        let panic = panic.err().unwrap();
        assert_eq!(panic.downcast_ref(), Some(&"out of memory"));
    }
}

#[test]
fn a_step_that_cannot_be_shared_evenly_is_refused() {
    let _device = exclusive();
    let place = Place::new();
    let run = place.run("run", shape(2, 32, 2));
    let error = run.go_on::<B>(ranks(unquantized(3)), None, &Interrupter::new());
    assert_eq!(
        error.err().unwrap().to_string(),
        "a step of 2 * 2 sequences (batch.sequences * batch.accumulate) cannot be divided by 3 \
         devices, it must be a multiple of 3"
    );
}

/// What every rank reads of a step, put together, is the step.
#[test]
fn shares_are_equal_and_make_up_the_step() {
    let place = Place::new();
    let device = Default::default();
    for (sequences, accumulate, ranks) in [(2, 2, 2), (4, 1, 2), (4, 2, 4), (2, 6, 4), (1, 3, 1)] {
        let shape = shape(sequences, 16, accumulate);
        let whole = TrainBatches::<NdArray>::new(place.tokens.clone(), shape, 5, 3, device);
        let whole = whole.unwrap();
        let ids = |batches: &TrainBatches<NdArray>| -> Vec<i64> {
            let micro = 0..batches.shape().accumulate.get() as u64;
            let rows = micro.flat_map(|micro| {
                let inputs = batches.at(7, micro).inputs.into_data();
                inputs.iter::<i64>().collect::<Vec<_>>()
            });
            rows.collect()
        };
        let shares: Vec<_> = (0..ranks)
            .map(|rank| {
                let ranks = NonZeroUsize::new(ranks).unwrap();
                whole.share(rank, ranks, device).unwrap()
            })
            .collect();
        let per_rank = shape.sequences_per_step() / ranks;
        for share in &shares {
            assert_eq!(share.shape().sequences_per_step(), per_rank);
        }
        assert_eq!(shares.iter().flat_map(ids).collect::<Vec<_>>(), ids(&whole));
    }
}
