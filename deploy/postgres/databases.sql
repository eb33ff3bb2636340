-- One database per service; no service reads another's.
CREATE DATABASE edge;
CREATE DATABASE providers;
CREATE DATABASE billing;
CREATE DATABASE ranking;
