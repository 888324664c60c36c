# A Rack application that knows nothing of lb.
run lambda { |env|
  [200, { 'content-type' => 'text/plain' }, ["hello #{env['REMOTE_ADDR']} from Ruby worker #{ENV['LB_WORKER_ID']} (pid #{Process.pid})\n"]]
}
