//! Which algorithm: the first product of a kind asks the library's heuristic for a few, times each
//! on its own operands, and keeps the fastest. What an earlier process kept goes before it: see
//! [`record`].
//!
//! All trials of a kind share a budget of time. A result that is to be added to is not tried on:
//! each run would add.

use cudarc::cublaslt::sys as lt;
use cudarc::driver::sys as cu;

use super::call::{Descriptors, Pointers, Preference, driver, library};
use super::error::Unavailable;
use super::library::{Key, Library, Prepared, WORKSPACE, allocate};
use super::plan::{Beta, MatmulPlan, Operation};
use super::record;

/// Algorithms that the heuristic is asked for.
pub(super) const OFFERS: usize = 8;
/// Timed runs of each, after one that is not timed.
const RUNS: u32 = 3;
/// What all trials of a shape may take together, in milliseconds.
const BUDGET_MS: f64 = 200.0;

/// How many algorithms are tried, and how often each is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trials {
    pub(super) candidates: usize,
    pub(super) runs: u32,
}

impl Trials {
    /// Spends at most the budget, given what the first algorithm took: fewer runs first, then fewer
    /// algorithms; one algorithm means that none is compared.
    pub(super) fn within_budget(first_ms: f32, offers: usize) -> Self {
        let ms = f64::from(first_ms).max(1e-6);
        let affordable = |runs: u32| {
            let tries = BUDGET_MS / (ms * f64::from(runs + 1));
            (1..=offers).rev().find(|&n| n as f64 <= tries).unwrap_or(1)
        };
        if affordable(RUNS) == offers {
            return Self {
                candidates: offers,
                runs: RUNS,
            };
        }
        Self {
            candidates: affordable(1),
            runs: 1,
        }
    }
}

/// What was chosen for a product.
#[derive(Clone, Debug)]
pub struct ChosenAlgorithm {
    /// Index of the device.
    pub device: usize,
    /// The product.
    pub plan: MatmulPlan,
    /// Place among what the heuristic offered, from 0.
    pub index: usize,
    /// How many the heuristic offered.
    pub offered: usize,
    /// How many were timed; 0 if an earlier process chose, or there was no memory for a trial.
    pub tried: usize,
    /// Mean of the timed runs; `None` if nothing was timed.
    pub milliseconds: Option<f32>,
    /// Workspace of the algorithm.
    pub workspace_bytes: usize,
}

impl ChosenAlgorithm {
    /// `[m, n, k]`.
    pub const fn dims(&self) -> [u64; 3] {
        self.plan.dims()
    }

    /// TFLOP/s, if it was timed.
    pub fn tflops(&self) -> Option<f64> {
        let ms = self.milliseconds?;
        Some(self.plan.flops() / f64::from(ms) * 1e-9)
    }
}

impl std::fmt::Display for ChosenAlgorithm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [m, n, k] = self.dims();
        let letter = |operation| match operation {
            Operation::None => 'N',
            Operation::Transpose => 'T',
        };
        let (a, b) = (letter(self.plan.transa), letter(self.plan.transb));
        let (operands, out) = (self.plan.a.dtype, self.plan.d.dtype);
        let count = self.plan.d.batch.count;
        if count != 1 {
            write!(f, "{count} of ")?;
        }
        write!(f, "{m}x{n}x{k} {a}{b} {operands:?} to {out:?}: ")?;
        match (self.milliseconds, self.tflops()) {
            (Some(ms), Some(rate)) => write!(f, "{ms:.3} ms, {rate:.0} TFLOP/s, ")?,
            (None, _) | (_, None) => write!(f, "not timed, ")?,
        }
        let (index, offered, tried) = (self.index, self.offered, self.tried);
        write!(f, "algorithm {index} of {offered}, {tried} tried")
    }
}

/// One of the offers, and what is known of it: see [`ChosenAlgorithm`].
struct Choice {
    index: usize,
    tried: usize,
    milliseconds: Option<f32>,
}

impl Choice {
    const fn untimed(index: usize) -> Self {
        Self {
            index,
            tried: 0,
            milliseconds: None,
        }
    }
}

impl Library {
    /// Takes what an earlier process chose, or times what the heuristic offers and keeps the
    /// fastest.
    pub(super) fn choose(
        &self,
        key: &Key,
        pointers: &Pointers,
    ) -> Result<(Prepared, ChosenAlgorithm), Unavailable> {
        let plan = &key.plan;
        let descriptors = Descriptors::new(plan)?;
        descriptors.point(pointers)?;
        let offers = self.offers(&descriptors, key)?;
        let mut prepared = Prepared {
            descriptors,
            algorithm: offers[0].algo,
        };
        let product = format!("cuBLASLt {} {key:?}", self.version);
        let choice = match record::known(&product, offers.len()) {
            Some(index) => Choice::untimed(index),
            None => self.fastest(plan, &product, &mut prepared, &offers, pointers)?,
        };
        prepared.algorithm = offers[choice.index].algo;
        let chosen = ChosenAlgorithm {
            device: 0,
            plan: plan.clone(),
            index: choice.index,
            offered: offers.len(),
            tried: choice.tried,
            milliseconds: choice.milliseconds,
            workspace_bytes: offers[choice.index].workspaceSize,
        };
        Ok((prepared, chosen))
    }

    /// Times offers and keeps the fastest, for later processes too. Leaves some offer's algorithm
    /// in `prepared`.
    fn fastest(
        &self,
        plan: &MatmulPlan,
        product: &str,
        prepared: &mut Prepared,
        offers: &[lt::cublasLtMatmulHeuristicResult_t],
        pointers: &Pointers,
    ) -> Result<Choice, Unavailable> {
        // A product that is added to its own output is tried on another one: each run would add.
        let scratch = match (plan.beta, pointers.c == pointers.d) {
            (Beta::One, true) => Some(Scratch::new(plan)),
            (Beta::One, false) | (Beta::Zero, _) => None,
        };
        let trial = match &scratch {
            None => Some(*pointers),
            Some(Ok(scratch)) => Some(Pointers {
                c: scratch.0,
                d: scratch.0,
                ..*pointers
            }),
            // No room: the heuristic's first choice, untimed.
            Some(Err(_)) => None,
        };
        let Some(trial) = trial else {
            return Ok(Choice::untimed(0));
        };
        // Zero lets every offer be tried as long as none has run.
        let first_ms = self.time(plan, prepared, &trial, 1).unwrap_or(0.0);
        let Trials { candidates, runs } = Trials::within_budget(first_ms, offers.len());
        let is_only = candidates == 1 && first_ms > 0.0;
        let mut fastest = is_only.then_some((first_ms, 0));
        let mut tried = usize::from(is_only);
        let mut failure = None;
        let untried = if is_only { 0 } else { candidates };
        for (index, offer) in offers.iter().take(untried).enumerate() {
            prepared.algorithm = offer.algo;
            match self.time(plan, prepared, &trial, runs) {
                Ok(ms) => {
                    tried += 1;
                    if fastest.is_none_or(|(best, _)| ms < best) {
                        fastest = Some((ms, index));
                    }
                }
                Err(error) => failure = Some(error),
            }
        }
        match (fastest, failure) {
            (Some((ms, fastest)), _) => {
                let index = record::keep(product, fastest, offers.len());
                Ok(Choice {
                    index,
                    tried,
                    milliseconds: (index == fastest).then_some(ms),
                })
            }
            (None, Some(failure)) => Err(failure),
            (None, None) => Err(no_algorithm(plan)),
        }
    }

    /// Asks the heuristic. Never empty.
    fn offers(
        &self,
        descriptors: &Descriptors,
        key: &Key,
    ) -> Result<Vec<lt::cublasLtMatmulHeuristicResult_t>, Unavailable> {
        let preference = Preference::new(WORKSPACE, key.alignment)?;
        let mut offers = [lt::cublasLtMatmulHeuristicResult_t {
            algo: lt::cublasLtMatmulAlgo_t { data: [0; 8] },
            workspaceSize: 0,
            state: lt::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED,
            wavesCount: 0.0,
            reserved: [0; 4],
        }; OFFERS];
        let mut count = 0;
        // SAFETY: all objects are alive; the library writes at most as many results as asked for.
        let status = unsafe {
            lt::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                descriptors.matmul,
                descriptors.a,
                descriptors.b,
                descriptors.d,
                descriptors.d,
                preference.0,
                i32::try_from(OFFERS).expect("a handful of algorithms"),
                offers.as_mut_ptr(),
                &raw mut count,
            )
        };
        if status == lt::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED {
            return Err(no_algorithm(&key.plan));
        }
        library("cublasLtMatmulAlgoGetHeuristic", status)?;
        let usable = |offer: &lt::cublasLtMatmulHeuristicResult_t| {
            offer.state == lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS
                && offer.workspaceSize <= WORKSPACE
        };
        let offers: Vec<_> = offers
            .into_iter()
            .take(usize::try_from(count).unwrap_or(0))
            .filter(usable)
            .collect();
        if offers.is_empty() {
            return Err(no_algorithm(&key.plan));
        }
        Ok(offers)
    }

    /// Milliseconds of one run: the mean of `runs`, after one that loads the kernel.
    fn time(
        &self,
        plan: &MatmulPlan,
        prepared: &Prepared,
        pointers: &Pointers,
        runs: u32,
    ) -> Result<f32, Unavailable> {
        self.launch(plan, prepared, pointers)?;
        let mut ms = 0.0;
        // SAFETY: events and stream are alive; the elapsed time is one f32.
        unsafe {
            driver("cuEventRecord", cu::cuEventRecord(self.start, self.stream))?;
            for _ in 0..runs {
                self.launch(plan, prepared, pointers)?;
            }
            driver("cuEventRecord", cu::cuEventRecord(self.stop, self.stream))?;
            driver("cuEventSynchronize", cu::cuEventSynchronize(self.stop))?;
            driver(
                "cuEventElapsedTime",
                (self.elapsed)(&raw mut ms, self.start, self.stop),
            )?;
        }
        #[expect(clippy::cast_precision_loss, reason = "a handful of runs")]
        let runs = runs as f32;
        Ok(ms / runs)
    }
}

/// Memory for the output of trials.
struct Scratch(u64);

impl Scratch {
    fn new(plan: &MatmulPlan) -> Result<Self, Unavailable> {
        // Only f32 results are added to.
        let products = u64::from(plan.d.batch.count.unsigned_abs());
        let elements = plan
            .d
            .rows
            .saturating_mul(plan.d.cols)
            .saturating_mul(products);
        let bytes = usize::try_from(elements.saturating_mul(4)).unwrap_or(usize::MAX);
        allocate("the trial of an accumulating GEMM", bytes).map(Self)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // SAFETY: allocated by `allocate`, freed once; the driver waits for work that uses it.
        let _ = unsafe { cu::cuMemFree_v2(self.0) };
    }
}

fn no_algorithm(plan: &MatmulPlan) -> Unavailable {
    let [m, n, k] = plan.dims();
    Unavailable::NoAlgorithm {
        m,
        n,
        k,
        operands: format!("{:?}", plan.a.dtype),
        out: format!("{:?}", plan.d.dtype),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trials_of_small_products_are_complete() {
        for ms in [0.0, 0.01, 2.5, 6.2] {
            let trials = Trials::within_budget(ms, 8);
            assert_eq!((trials.candidates, trials.runs), (8, 3), "{ms} ms");
        }
    }

    #[test]
    fn trials_stay_within_the_budget() {
        for ms in [6.3, 10.0, 12.5, 20.0, 40.0, 49.0] {
            let Trials { candidates, runs } = Trials::within_budget(ms, 8);
            let spent = ms * candidates as f32 * (runs + 1) as f32;
            assert!(spent <= 200.0 && candidates > 1, "{ms} ms: {spent}");
        }
        assert_eq!(Trials::within_budget(60.0, 8).candidates, 1);
        assert_eq!(Trials::within_budget(f32::INFINITY, 8).candidates, 1);
        assert_eq!(Trials::within_budget(1.0, 1).candidates, 1);
    }
}
