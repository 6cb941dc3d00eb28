module poc-worker-example

go 1.19
