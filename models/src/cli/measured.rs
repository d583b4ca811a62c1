//! What a run measured of quantization, as tables: every operand of a step, and which GEMM really
//! ran in which formats by which routine, where layers that ran alike share a row.

use std::collections::BTreeMap;

use burn_nvfp4_models::train::layers::{GemmFigure, OperandFigure};

use crate::cli::table::Table;

/// What quantization did to each operand of a step.
pub(crate) fn operands(figures: &[OperandFigure]) -> Table {
    let heading = [
        "layer",
        "operand",
        "SQNR, dB",
        "to zero, %",
        "cut off, %",
        "zero scales, %",
        "amax",
        "scaled to 4, %",
        "bias of rounding, %",
    ];
    let percent =
        |share: Option<f64>| share.map_or("-".to_owned(), |share| format!("{:.3}", 100.0 * share));
    let mut table = Table::new(&heading, 2);
    let row = |figure: &OperandFigure| {
        vec![
            figure.layer.clone(),
            figure.operand.clone(),
            figure
                .sqnr_db
                .map_or("-".to_owned(), |sqnr| format!("{sqnr:.2}")),
            percent(Some(figure.underflow)),
            percent(Some(figure.saturation)),
            percent(figure.zero_scale_blocks),
            figure
                .tensor_amax
                .map_or("-".to_owned(), |amax| format!("{amax:.4e}")),
            percent(figure.scaled_to_four),
            percent(figure.rounding_bias),
        ]
    };
    table.rows = figures.iter().map(row).collect();
    table
}

/// The GEMMs of a step.
pub(crate) fn gemms(figures: &[GemmFigure]) -> Table {
    let mut rows: Vec<(&GemmFigure, Vec<&str>)> = Vec::new();
    for gemm in figures {
        let alike = |(row, _): &&mut (&GemmFigure, Vec<&str>)| {
            (&row.gemm, &row.lhs, &row.rhs, &row.routine)
                == (&gemm.gemm, &gemm.lhs, &gemm.rhs, &gemm.routine)
        };
        match rows.iter_mut().find(alike) {
            Some((_, layers)) => layers.push(&gemm.layer),
            None => rows.push((gemm, vec![&gemm.layer])),
        }
    }
    // fprop, dgrad, wgrad: as training goes, whatever came first in a log.
    let place = |gemm: &str| {
        ["fprop", "dgrad", "wgrad"]
            .iter()
            .position(|it| *it == gemm)
    };
    rows.sort_by_key(|(gemm, _)| place(&gemm.gemm).unwrap_or(3));
    let mut table = Table::new(&["GEMM", "left", "right", "routine", "layers"], 5);
    table.rows = rows
        .iter()
        .map(|(gemm, layers)| {
            let words = [&gemm.gemm, &gemm.lhs, &gemm.rhs, &gemm.routine];
            let words = words.into_iter().cloned();
            words
                .chain([format!("{}: {}", layers.len(), together(layers))])
                .collect()
        })
        .collect();
    table
}

/// Names that differ in the number of their block alone, written together:
/// `layers.{0,2}.mixer.in_proj`.
fn together(layers: &[&str]) -> String {
    let mut groups: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    let mut order = Vec::new();
    for layer in layers {
        let mut parts = layer.splitn(3, '.');
        let (first, block, rest) = (parts.next(), parts.next(), parts.next());
        let (key, block) = match (first, block, rest) {
            (Some(first), Some(block), Some(rest)) if block.parse::<u32>().is_ok() => {
                ((first, rest), block)
            }
            _ => ((*layer, ""), ""),
        };
        if !groups.contains_key(&key) {
            order.push(key);
        }
        groups.entry(key).or_default().push(block);
    }
    for blocks in groups.values_mut() {
        // Backward begins at the last one.
        blocks.sort_by_key(|block| block.parse::<u32>().unwrap_or(0));
    }
    let names = order.iter().map(|key| match (&groups[key][..], key) {
        (_, (name, "")) => (*name).to_owned(),
        ([block], (first, rest)) => format!("{first}.{block}.{rest}"),
        (blocks, (first, rest)) => format!("{first}.{{{}}}.{rest}", blocks.join(",")),
    });
    names.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gemm(layer: &str, gemm: &str, routine: &str) -> GemmFigure {
        GemmFigure {
            layer: layer.to_owned(),
            gemm: gemm.to_owned(),
            lhs: "1x16".to_owned(),
            rhs: "16x16".to_owned(),
            routine: routine.to_owned(),
        }
    }

    #[test]
    fn layers_that_ran_alike_share_a_row_and_blocks_a_name() {
        let figures = [
            gemm("layers.10.mixer.in_proj", "fprop", "emulated"),
            gemm("layers.0.mixer.in_proj", "dgrad", "emulated"),
            gemm("layers.2.mixer.in_proj", "fprop", "emulated"),
            gemm("layers.1.mixer.up_proj", "fprop", "emulated"),
            gemm("lm_head", "fprop", "Burn's own op"),
        ];
        let table = gemms(&figures);
        let rows: Vec<_> = table
            .rows
            .iter()
            .map(|row| (row[0].as_str(), row[4].as_str()))
            .collect();
        assert_eq!(
            rows,
            [
                (
                    "fprop",
                    "3: layers.{2,10}.mixer.in_proj, layers.1.mixer.up_proj"
                ),
                ("fprop", "1: lm_head"),
                ("dgrad", "1: layers.0.mixer.in_proj"),
            ]
        );
    }
}
