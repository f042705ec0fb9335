# Commands, not tests.
collect_ignore = ['bad_inputs', 'kill_and_resume.py', 'soak.py', 'time_start_up.py']
