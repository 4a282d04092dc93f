"""Real devices: enrolment, certificates, systemd units and the doctor."""
