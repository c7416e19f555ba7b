#!/usr/bin/ruby
# frozen_string_literal: true

# Tests of details.rb, as a client sees it: ruby images/details/test.rb

require 'json'
require 'minitest/autorun'
require 'net/http'
require 'open3'
require 'rbconfig'
require 'socket'

# A details.rb that runs for the length of a test.
class Service
  COMMAND = [RbConfig.ruby, File.join(__dir__, 'details.rb')].freeze

  attr_reader :port

  def initialize(environment = {})
    @port = TCPServer.open('127.0.0.1', 0) { |server| server.addr[1] }
    @pid = spawn(environment, *COMMAND, @port.to_s, %i[out err] => File::NULL)
    100.times do
      return TCPSocket.new('127.0.0.1', @port).close
    rescue Errno::ECONNREFUSED
      sleep 0.1
    end
    raise 'details.rb did not come up'
  end

  def get(path, headers = {}, host: '127.0.0.1')
    Net::HTTP.new(host, @port).get(path, headers)
  end

  def post(path)
    Net::HTTP.new('127.0.0.1', @port).post(path, '')
  end

  def stop
    Process.kill('TERM', @pid)
    Process.wait2(@pid).last
  end
end

# Stands in for the external book service: keeps what it is asked, answers the same to all.
class Books
  attr_reader :requests

  def initialize(body)
    @server = TCPServer.new('127.0.0.1', 0)
    @requests = []
    Thread.new do
      loop { serve(@server.accept, body) }
    end
  end

  def address
    "127.0.0.1:#{@server.addr[1]}"
  end

  private

  def serve(socket, body)
    @requests << socket.gets("\r\n\r\n")
    socket.write("HTTP/1.1 200 OK\r\nContent-Length: #{body.bytesize}\r\nConnection: close\r\n\r\n#{body}")
    socket.close
  end
end

class DetailsTest < Minitest::Test
  BOOK = '"author":"William Shakespeare","year":1595,"type":"paperback","pages":200,' \
         '"publisher":"PublisherA","language":"English","ISBN-10":"1234567890",' \
         '"ISBN-13":"123-1234567890"}'
  NO_ID = '{"error":"please provide numeric product id"}'

  def service(environment = {})
    service = Service.new(environment)
    yield service
  ensure
    service&.stop
  end

  def assert_answer(status, body, response)
    assert_equal [status, 'application/json', body],
                 [response.code.to_i, response['Content-Type'], response.body]
  end

  def test_answers
    service do |details|
      assert_answer 200, '{"status":"Details is healthy"}', details.get('/health')
      assert_answer 200, "{\"id\":0,#{BOOK}", details.get('/details/0')
      assert_answer 200, "{\"id\":0,#{BOOK}", details.post('/details/0')
      assert_answer 200, "{\"id\":0,#{BOOK}", details.get('/details/0', host: '::1')
      { '0x10' => 16, '007' => 7, '-1' => -1, '7/' => 7, 'a/7' => 7 }.each do |text, id|
        assert_answer 200, "{\"id\":#{id},#{BOOK}", details.get("/details/#{text}")
      end
      ['/details', '/details/', '/details/moby', '/details/1.5', '/details/7/a'].each do |path|
        assert_answer 400, NO_ID, details.get(path)
      end
      other = details.get('/nothing')
      assert_equal %w[404 text/html], [other.code, other['Content-Type'].split(';').first]
    end
  end

  def test_stops_when_asked
    assert_predicate Service.new.stop, :success?
  end

  def test_wants_a_port
    [[], ['http'], %w[9080 9081]].each do |arguments|
      _, error, status = Open3.capture3(*Service::COMMAND, *arguments)
      assert_equal ["usage: details.rb PORT\n", 2], [error, status.exitstatus]
    end
  end

  def with_books(body)
    books = Books.new(body)
    environment = { 'ENABLE_EXTERNAL_BOOK_SERVICE' => 'true', 'DO_NOT_ENCRYPT' => 'true',
                    'EXTERNAL_BOOK_SERVICE' => books.address }
    service(environment) { |details| yield details, books }
  end

  def test_external_book
    book = { authors: %w[Shakespeare Other], publishedDate: '2002', printType: 'BOOK', pageCount: 92,
             publisher: 'Dover', language: 'en',
             industryIdentifiers: [{ type: 'ISBN_10', identifier: '10' }, { type: 'ISBN_13', identifier: '13' }] }
    with_books({ items: [{ volumeInfo: book }] }.to_json) do |details, books|
      sent = { 'X-Request-Id' => 'r1', 'traceparent' => 't1', 'end-user' => 'jason', 'x-other' => 'no' }
      assert_answer 200, '{"id":3,"author":"Shakespeare","year":"2002","type":"paperback","pages":92,' \
                         '"publisher":"Dover","language":"English","ISBN-10":"10","ISBN-13":"13"}',
                    details.get('/details/3', sent)
      request = books.requests.fetch(0).downcase
      assert_match(%r{\Aget /books/v1/volumes\?q=isbn:\d{10} }, request)
      assert_includes request, "\r\nx-request-id: r1\r\n"
      assert_includes request, "\r\ntraceparent: t1\r\n"
      assert_includes request, "\r\nend-user: jason\r\n"
      refute_includes request, 'x-other'
      refute_includes request, 'sw8'
    end
  end

  def test_external_service_without_the_book
    ['{"totalItems":0}', '<html>'].each do |body|
      with_books(body) do |details, _|
        assert_answer 400, '{"error":"the book service sent no book"}', details.get('/details/3')
      end
    end
  end

  def test_external_service_that_is_not_there
    gone = TCPServer.open('127.0.0.1', 0) { |server| server.addr[1] }
    environment = { 'ENABLE_EXTERNAL_BOOK_SERVICE' => 'true', 'EXTERNAL_BOOK_SERVICE' => "127.0.0.1:#{gone}" }
    service(environment) do |details|
      response = details.get('/details/3')
      assert_equal '400', response.code
      assert_includes JSON.parse(response.body)['error'], 'does not answer'
    end
  end
end
