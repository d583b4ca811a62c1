use super::*;

#[test]
fn a_machine_without_the_library_says_so_in_one_line() {
    // With a driver and the library this holds as well: no machine has that many devices.
    let error = probe(&CudaDevice::new(60_000)).unwrap_err();
    assert!(!error.to_string().contains('\n'), "{error}");
    assert_eq!(probe(&CudaDevice::new(60_000)).unwrap_err(), error);
}

#[test]
fn a_failure_is_reported_once_and_the_first_is_kept() {
    assert_eq!(take_failure(), Ok(()));
    for message in ["first", "second"] {
        lock(&FAILURE).get_or_insert_with(|| message.to_owned());
    }
    let message = "first".to_owned();
    assert_eq!(take_failure(), Err(Unavailable::Lost { message }));
    assert_eq!(take_failure(), Ok(()));
}

#[test]
fn a_panic_becomes_an_error() {
    let error = caught::<()>(|| panic!("no symbol")).unwrap_err();
    assert_eq!(error.to_string(), "the device's thread failed: no symbol");
}
