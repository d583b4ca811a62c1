//! `--backend wgpu` on a machine without a device for it.

use super::*;

/// CubeCL answers with a panic on a thread of its own, while the command waits for it.
#[test]
fn a_machine_without_an_adapter_is_told_in_one_line() {
    let desk = Desk::new();
    let before = desk.snapshot();
    for command in [
        "train --config run.toml --backend wgpu",
        "train --config run.toml --backend wgpu --device 7",
    ] {
        let mut command = desk.command(command);
        // The loader of Vulkan takes the files that these name for all drivers that there are.
        command
            .env("VK_DRIVER_FILES", "/nonexistent")
            .env("VK_ICD_FILENAMES", "/nonexistent");
        let words = ["--backend wgpu: ", "finds no graphics adapter", "ndarray"];
        check_error(&command.output().unwrap(), 1, &words);
    }
    assert_eq!(desk.snapshot(), before, "nothing was written");
}
