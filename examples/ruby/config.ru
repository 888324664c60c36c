# A Rack application, and what has puma answer lb's drain_signal.

# With drain_signal = "SIGUSR2" clients hear with their next answer that they should open another connection:
# puma then takes it that the client asked for that. The signal would have puma restart itself otherwise.
class CloseWhenDraining
  def initialize(app)
    @app, @draining = app, false
    Signal.trap('USR2') { @draining = true }
  end

  def call(env)
    env['HTTP_CONNECTION'] = 'close' if @draining
    @app.call(env)
  end
end

use CloseWhenDraining
run lambda { |env|
  [200, { 'content-type' => 'text/plain' }, ["hello #{env['REMOTE_ADDR']} from Ruby worker #{ENV['LB_WORKER_ID']} (pid #{Process.pid})\n"]]
}
