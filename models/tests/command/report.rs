//! Pages about runs and studies, and what is said where there is none to make.

use super::*;

#[test]
fn a_run_has_a_page_with_what_was_sampled_and_which_routine_ran() {
    let desk = Desk::new();
    let trained = desk.train("--out runs/a --statistics-every 3 --policy uniform");
    assert!(trained.status.success());
    let output = desk.command("report runs/a").output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "runs/a/report.html\n"
    );
    let page = fs::read_to_string(desk.path("runs/a/report.html")).unwrap();
    for text in [
        "Signal to quantization noise",
        "emulated: f32 GEMM of decoded operands",
        "lm_head",
        "Every operand in step 4",
        "recipe = &quot;nvidia&quot;",
    ] {
        assert!(page.contains(text), "{text}");
    }
    assert!(!page.contains("<script"));
    let inspected = desk.command("inspect runs/a").output().unwrap();
    assert!(inspected.status.success());
    let tables = String::from_utf8(inspected.stdout).unwrap();
    for text in [
        "step 4\n",
        "SQNR, dB",
        "layers.1.mixer.up_proj    wgrad.rhs",
        "from step 1 on\n",
        "emulated: f32 GEMM of decoded operands",
    ] {
        assert!(tables.contains(text), "{text}: {tables}");
    }
    // A log alone is enough, and another place may be named.
    desk.write(
        "logs/log.jsonl",
        &fs::read(desk.path("runs/a/log.jsonl")).unwrap(),
    );
    let output = desk
        .command("report logs --against runs/a --out b.html")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let page = fs::read_to_string(desk.path("b.html")).unwrap();
    assert!(page.contains("+0.0000 nats, +0.00 %"));
}

#[test]
fn a_study_has_a_page_with_its_table_and_its_gaps() {
    let desk = Desk::new();
    let study = "name = \"s\"\nbase = \"run.toml\"\nseeds = [1]\nreference = \"plain\"\n\
                 [[arm]]\nname = \"plain\"\nrecipe = \"high_precision\"\n\
                 [[arm]]\nname = \"fp4\"\nrecipe = \"nvidia\"\npolicy = \"uniform\"\n";
    desk.write("s.toml", study.as_bytes());
    assert!(
        desk.command("compare s.toml --out out")
            .output()
            .unwrap()
            .status
            .success()
    );
    let output = desk.command("report out").output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let page = fs::read_to_string(desk.path("out/report.html")).unwrap();
    for text in [
        "<td>fp4</td>",
        "One seed",
        "gap to plain",
        "gap in high precision, %",
    ] {
        assert!(page.contains(text), "{text}");
    }
    let output = desk
        .command("report out --against out/fp4/seed-1")
        .output()
        .unwrap();
    check_error(&output, 2, &["--against is for a run"]);
}

#[test]
fn where_there_is_no_whole_log_the_page_is_not_made_and_the_line_is_named() {
    let desk = Desk::new();
    desk.write("empty/log.jsonl", b"");
    desk.write(
        "broken/log.jsonl",
        b"{\"event\":\"stopped\",\"step\":1,\"reason\":\"x\"}\n[1]\n",
    );
    desk.write("bytes/log.jsonl", b"\xff\xfe\n");
    desk.write("odd/plan.toml", b"name = 3\n");
    let cases: [(&str, i32, &[&str]); 6] = [
        ("report none", 1, &["none: no run and no study"]),
        ("report .", 1, &[".: no run and no study"]),
        ("report empty", 1, &["empty/log.jsonl: no line of a log"]),
        (
            "report broken",
            1,
            &["broken/log.jsonl: line 2 is no line of a log"],
        ),
        ("report bytes", 1, &["bytes/log.jsonl: line 1"]),
        ("report odd", 2, &["odd/plan.toml"]),
    ];
    for (arguments, code, words) in cases {
        check_error(&desk.command(arguments).output().unwrap(), code, words);
    }
    assert!(!desk.path("broken/report.html").exists());
}
